"""Autograd with what it meets in the host: inference tensors, blocks that work in place, and a limit of memory."""

from contextlib import contextmanager
from contextvars import ContextVar
from weakref import ref

import comfy.model_management
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map


class _Count:
    """How many bytes are `needed`: for what is kept, and for its backward. GraphTooLarge above `limit`."""

    def __init__(self, limit: float, weights: set[int]):
        self.limit, self.weights = limit, weights
        self.needed = self._total = 0
        self._sizes: dict[int, int] = {}

    def add(self, place: int, size: int) -> None:
        """The storage at this place is kept."""
        if place in self.weights:  # held anyway, but the backward of a convolution copies its weight twice
            needed = self._total + 2 * size
        else:
            self._total += size - self._sizes.get(place, 0)
            self._sizes[place] = size
            # the gradients of what was kept last, and the intermediate results of its backward
            needed = self._total + 5 * size
        self.needed = max(self.needed, 1.03 * needed)  # the share of small tensors, which are not counted
        if self.needed > self.limit:
            raise GraphTooLarge


class _PlainTensors(TorchFunctionMode):
    """Lets autograd work with what it meets in the host: inference tensors, and blocks that work in place.

    `keep` gets each tensor that autograd saves for the backward. Before the host changes one of them in place
    (`h += control`, the residuals of Flux's blocks), what was saved is copied.
    """

    def __init__(self):
        super().__init__()
        self._kept: dict[int, list[ref[Tensor]]] = {}
        self.count: _Count | None = None

    def keep(self, tensor: Tensor) -> Tensor:
        alias, place = tensor.detach(), _place(tensor)
        kept = self._kept.setdefault(place, [])
        kept[:] = [*(held for held in kept if held() is not None), ref(alias)]
        if self.count is not None:
            self.count.add(place, tensor.untyped_storage().nbytes())
        return alias

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in ("__get__", "__set__"):  # a tensor's shape, dtype and the like; the host moves a model by its data
            return func(*args, **kwargs)
        func = WITH_A_WAY_BACK.get(name, func)
        tensors = _tensors_in((*args, *kwargs.values()))
        in_place = name == "__setitem__" or name.endswith("_") and not name.endswith("__")
        if in_place and tensors:
            self._spare(tensors[0])
        if any(tensor.requires_grad for tensor in tensors):
            if any(map(_unkeepable, tensors)):
                # autograd may save any of them for the backward
                args, kwargs = tree_map(_plain, (args, kwargs))
        elif in_place and tensors and tensors[0].is_inference():
            # the host fills a buffer of its own, such as the one for weights on their way from the CPU
            with torch.inference_mode():
                return func(*args, **kwargs)
        return func(*args, **kwargs)

    def _spare(self, tensor: Tensor) -> None:
        """Copies what autograd saved of a tensor that is about to be changed in place."""
        for held in self._kept.pop(_place(tensor), ()):
            alias = held()
            if alias is not None:
                alias.data = alias.data.clone()


def _rotated(x: Tensor, turns: Tensor) -> Tensor:
    """Rotary embedding: each pair of x's last dimension by its own 2x2 matrix of `turns` (..., pairs, 2, 2)."""
    return (turns * x.to(turns.dtype).unflatten(-1, (-1, 1, 2))).sum(-1).flatten(-2).to(x.dtype)


# fused kernels of hosts that do not know `in_training` yet (0.8)
WITH_A_WAY_BACK = {"apply_rope": lambda q, k, turns: (_rotated(q, turns), _rotated(k, turns)), "apply_rope1": _rotated}


def _tensors_in(values) -> list[Tensor]:
    tensors = []
    for value in values:
        if isinstance(value, Tensor):
            tensors.append(value)
        elif isinstance(value, list | tuple):
            tensors += _tensors_in(value)
    return tensors


def _plain(value):
    return value.detach().clone() if isinstance(value, Tensor) and _unkeepable(value) else value


def _unkeepable(tensor: Tensor) -> bool:
    """Whether autograd cannot save it: an inference tensor, or one that was and has got other data."""
    try:
        return tensor.is_inference() or tensor._version < 0
    except RuntimeError:  # it has no version
        return True


_keeping: ContextVar[_PlainTensors] = ContextVar("steer_gradients")


@contextmanager
def gradients():
    """Inside, calls of a `Differentiable`'s model can be differentiated, even from a node's inference mode.

    The backward has to be inside as well. Never yield inside: the modes would leak to whoever iterates.
    """
    keeping = _PlainTensors()
    hooks = torch.autograd.graph.saved_tensors_hooks(keeping.keep, lambda tensor: tensor)
    token = _keeping.set(keeping)
    try:
        with torch.inference_mode(False), torch.enable_grad(), _in_training(), hooks, keeping:
            yield
    finally:
        _keeping.reset(token)


@contextmanager
def _in_training():
    """Sets the host's own flag for code that is differentiated: its fused kernels have no backward."""
    before = getattr(comfy.model_management, "in_training", None)
    if before is None:  # older hosts, which have no such kernels
        yield
        return
    comfy.model_management.in_training = True
    try:
        yield
    finally:
        comfy.model_management.in_training = before


class GraphTooLarge(Exception):
    """Raised in the forward pass when what it keeps for the backward does not fit."""


def _place(tensor: Tensor) -> int:
    return tensor.data.untyped_storage().data_ptr()  # `.data`: inside `gradients` the tensor itself may be copied first


@contextmanager
def graph_within(limit: float, model: torch.nn.Module):
    """Raises GraphTooLarge as soon as more than `limit` bytes are needed; yields the count of them."""
    keeping = _keeping.get(_PlainTensors())  # outside of `gradients` nothing is kept
    # a quantised weight has no memory of its own, and is not used as it is
    keeping.count = _Count(limit, {_place(weight) for weight in model.parameters() if type(weight.data) is Tensor})
    try:
        yield keeping.count
    finally:
        keeping.count = None
