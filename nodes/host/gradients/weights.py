"""What can be fitted while a model's own weights are only read: copies of them, or a LoRA."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from math import sqrt

import torch
from torch import Tensor
from torch.nn import Parameter


@contextmanager
def own_weights(model: torch.nn.Module) -> Iterator[dict[str, Parameter]]:
    """Inside, the host's layers compute with copies of their weights, which are made as each is first used.

    The copies are what is yielded, by name, in the dtype that is computed in. The model's weights are only read. The
    copies are gone afterwards.
    """
    copies: dict[str, Parameter] = {}
    names = [
        f"{name}.{kind}"
        for name, layer in host_layers(model)
        for kind in FUNCTIONS
        if getattr(layer, kind, None) is not None
    ]
    try:
        with _changed(model, {name: partial(_own, copies, name) for name in names}):
            yield copies
    finally:
        copies.clear()


@contextmanager
def low_rank(model: torch.nn.Module, layers: list[str], rank: int, seed: int, device: torch.device) -> Iterator[dict]:
    """Inside, `up @ down` is added to the weights of these layers: a LoRA (Hu et al. 2022, arXiv:2106.09685).

    What is yielded is a `LowRank` for each layer, by name; what it adds is zero at first.
    """
    shapes = {name: model.get_parameter(f"{name}.weight").shape for name in layers}
    with torch.inference_mode(False):
        added = {name: LowRank.drawn(shape, rank, f"{seed}/{name}", device) for name, shape in shapes.items()}
    with _changed(model, {f"{name}.weight": pair.added for name, pair in added.items()}):
        yield added


@dataclass(frozen=True)
class LowRank:
    """What is added to one weight (out, in, ...), float32."""

    up: Parameter
    """(out, rank), zero at first."""
    down: Parameter
    """(rank, in * ...), drawn as the weights of a linear layer are."""

    @classmethod
    def drawn(cls, shape: torch.Size, rank: int, seed: str, device: torch.device) -> "LowRank":
        width = shape[1:].numel()
        state = int.from_bytes(blake2b(seed.encode()).digest()[:7], "little")
        uniform = torch.rand(rank, width, generator=torch.Generator().manual_seed(state))  # the same on every device
        down = (2.0 * uniform - 1.0) / sqrt(width)
        return cls(Parameter(torch.zeros(shape[0], rank, device=device)), Parameter(down.to(device)))

    def added(self, weight: Tensor, **_) -> Tensor:
        return (weight.float() + (self.up @ self.down).view(weight.shape)).to(weight.dtype)


FUNCTIONS = {"weight": "weight_function", "bias": "bias_function"}
"""The host's lists of what a layer does with its weight and its bias before it uses them."""


@contextmanager
def _changed(model: torch.nn.Module, changes: dict[str, Callable[..., Tensor]]) -> Iterator[None]:
    """Inside, the host's layers compute with what these functions, by a weight's name, make of their weights."""
    layers = host_layers(model)
    before = [{key: vars(layer)[key] for key in FUNCTIONS.values() if key in vars(layer)} for _, layer in layers]
    try:
        for name, layer in layers:
            for kind, functions in FUNCTIONS.items():
                if change := changes.get(f"{name}.{kind}"):
                    setattr(layer, functions, [*getattr(layer, functions), change])
        yield
    finally:
        for (_, layer), functions in zip(layers, before, strict=True):
            for key in FUNCTIONS.values():
                vars(layer).pop(key, None)
            vars(layer).update(functions)


def _own(copies: dict[str, Parameter], name: str, weight: Tensor, **_) -> Tensor:
    if name not in copies:
        copies[name] = Parameter(weight.detach().clone())
    return copies[name]


def host_layers(model) -> list[tuple[str, torch.nn.Module]]:
    return [(name, layer) for name, layer in model.named_modules() if hasattr(layer, "weight_function")]
