"""Copies of a model's weights that can be fitted while the model's own are only read."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

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
    layers = [layer for _, layer in host_layers(model)]
    before = [{key: vars(layer)[key] for key in FUNCTIONS if key in vars(layer)} for layer in layers]
    try:
        for name, layer in host_layers(model):
            for kind, functions in zip(("weight", "bias"), FUNCTIONS, strict=True):
                if getattr(layer, kind, None) is not None:
                    own = partial(_own, copies, f"{name}.{kind}")
                    setattr(layer, functions, [*getattr(layer, functions), own])
        yield copies
    finally:
        for layer, functions in zip(layers, before, strict=True):
            for key in FUNCTIONS:
                vars(layer).pop(key, None)
            vars(layer).update(functions)
        copies.clear()


FUNCTIONS = ("weight_function", "bias_function")


def _own(copies: dict[str, Parameter], name: str, weight: Tensor, **_) -> Tensor:
    if name not in copies:
        copies[name] = Parameter(weight.detach().clone())
    return copies[name]


def host_layers(model) -> list[tuple[str, torch.nn.Module]]:
    return [(name, layer) for name, layer in model.named_modules() if hasattr(layer, "weight_function")]
