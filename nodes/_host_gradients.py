"""Gradients through the host's models, from inference mode: weights are shared, activations may not fit.

Nothing of the models is changed; what a run needs of its own lives in the context `gradients` and in a clone of the
patcher.
"""

from collections.abc import Callable
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from weakref import ref

import comfy.model_management
import torch
from comfy.ldm.modules.attention import attention_pytorch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten
from torch.utils.checkpoint import checkpoint

from ._host import log


class _Count:
    """How many bytes are `needed`: for what is kept, and for the way back through it. GraphTooLarge above `limit`."""

    def __init__(self, limit: float, weights: set[int]):
        self.limit, self.weights = limit, weights
        self.needed = self._total = 0
        self._sizes: dict[int, int] = {}

    def add(self, place: int, size: int) -> None:
        """The storage at this place is kept."""
        if place in self.weights:  # there anyway, but a convolution's way back lays its weight out anew, twice
            needed = self._total + 2 * size
        else:
            self._total += size - self._sizes.get(place, 0)
            self._sizes[place] = size
            # the gradients of what was kept last, and what is computed on the way to them
            needed = self._total + 5 * size
        self.needed = max(self.needed, 1.03 * needed)  # and for what is small
        if self.needed > self.limit:
            raise GraphTooLarge


class _PlainTensors(TorchFunctionMode):
    """Lets autograd work with what it meets in the host: inference tensors, and blocks that work in place.

    `keep` is for what autograd saves for the way back. What the host then changes in place (`h += control`, the
    residuals of Flux's blocks) is first copied where it was saved.
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
                # autograd may save any of them for the way back
                args, kwargs = tree_map(_plain, (args, kwargs))
        elif in_place and tensors and tensors[0].is_inference():
            # the host fills a buffer of its own, such as the one for weights on their way from the CPU
            with torch.inference_mode():
                return func(*args, **kwargs)
        return func(*args, **kwargs)

    def _spare(self, tensor: Tensor) -> None:
        """Gives what was kept of a tensor that is about to change a memory of its own."""
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
    found = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += _tensors_in(value)
    return found


def _plain(value):
    return value.detach().clone() if isinstance(value, Tensor) and _unkeepable(value) else value


def _unkeepable(tensor: Tensor) -> bool:
    """Whether autograd cannot save it: an inference tensor, be it one that got other data since."""
    try:
        return tensor.is_inference() or tensor._version < 0
    except RuntimeError:  # it has no version
        return True


_keeping: ContextVar[_PlainTensors] = ContextVar("steer_gradients")


@contextmanager
def gradients():
    """Inside, calls of a `Differentiable`'s model can be differentiated, even from a node's inference mode.

    The way back has to be inside as well. Never yield inside: the modes would leak to whoever iterates.
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
    """The host's own sign that what is computed will be differentiated: fused kernels have no way back."""
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
    """Raised on the way forward when what it keeps for the way back does not fit."""


class DoesNotFit(ValueError):
    """There is too little memory to differentiate a model in any way."""


class Differentiable:
    """A model patcher's model (a model, a VAE, a CLIP vision) as it is called inside `gradients`.

    `patcher` is a clone to load and run instead of the given one. There each weight goes through `_usable`, so that
    autograd can keep it, and so that layers with quantised arithmetic compute in full. The weights themselves are
    shared and stay as they are.
    Where the activations do not fit they are not kept, and computed again block by block: `recompute` says so, None
    until the first call has found it out, and from the first that does not fit on; `needed` is how many bytes it took
    to keep them. With `weights` the way back reaches weights that can be differentiated too.
    """

    def __init__(self, patcher, recompute: bool | None = None, weights: bool = False):
        self.patcher, self.recompute, self.weights = patcher.clone(), recompute, weights
        self.needed = 0
        self.patcher.remove_additional_models("multigpu")  # the host's worker threads record no gradients
        for name, layer in self.patcher.model.named_modules():
            if hasattr(layer, "weight_function"):  # the host's layers; others use their weights as they are
                for kind in ("weight", "bias"):
                    if getattr(layer, kind, None) is not None:
                        self.patcher.add_weight_wrapper(f"{name}.{kind}", partial(_usable, layer, kind))

    def __call__(self, call: Callable):
        """What `call()` returns, a function that calls the model. `DoesNotFit` where not even the blocks' inputs do."""
        if not self.recompute:
            result = self._kept(call)
            if result is None and self._make_room():
                result = self._kept(call)
            if result is not None:
                if self.recompute is None:
                    log.info("the gradients through %s take %.2f GiB of memory", self._name, self.needed / 2**30)
                self.recompute = False
                return result
            log.info("the activations of %s do not fit: they are computed again on the way back", self._name)
            self.recompute = True
        free = comfy.model_management.get_free_memory(self.patcher.load_device)
        try:
            with _recomputing(self.patcher.model, _recomputed_with_weights if self.weights else _recomputed):
                with _graph_within(free, self.patcher.model):
                    return call()
        except GraphTooLarge:
            raise DoesNotFit(
                f"the gradients through {self._name} need more than the {free / 2**30:.2f} GiB of memory that are "
                "free, even where activations are computed again block by block"
            ) from None

    @property
    def _name(self) -> str:
        return type(self.patcher.model).__name__

    def _kept(self, call: Callable):
        """What `call()` returns, its activations kept; None where they do not fit."""
        free = comfy.model_management.get_free_memory(self.patcher.load_device)
        try:
            with _graph_within(free, self.patcher.model) as count:
                result = call()
            self.needed = count.needed
            return result
        except (GraphTooLarge, comfy.model_management.OOM_EXCEPTION):
            pass
        comfy.model_management.soft_empty_cache()  # the error is gone, and with it what it held
        return None

    def _make_room(self) -> bool:
        """Whether the host could unload models that this run does not use."""
        management, device = comfy.model_management, self.patcher.load_device
        if management.is_device_cpu(device):
            return False
        used = [loaded for loaded in management.current_loaded_models if loaded.currently_used]
        return bool(management.free_memory(1e30, device, keep_loaded=used))


def _usable(layer: torch.nn.Module, kind: str, weight: Tensor, **_) -> Tensor:
    """The weight as autograd can keep it: not an inference tensor, nor in a buffer for the next offloaded layer."""
    # `_PlainTensors` has nothing to do here, and would look at each attribute of each weight
    with torch._C.DisableTorchFunction():
        own, changes = getattr(layer, kind).data, getattr(layer, f"{kind}_function", ())
        if type(own) is Tensor and len(changes) == 1 and (own.device, own.dtype) == (weight.device, weight.dtype):
            shared = torch.empty(0, dtype=own.dtype, device=own.device)
            return shared.set_(own.untyped_storage(), own.storage_offset(), own.shape, own.stride())
        return weight.detach().clone()


def _place(tensor: Tensor) -> int:
    return tensor.data.untyped_storage().data_ptr()  # data, or inside `gradients` it could be a copy's


@contextmanager
def _graph_within(limit: float, model: torch.nn.Module):
    """Raises GraphTooLarge as soon as more than `limit` bytes are needed; yields the count of them."""
    keeping = _keeping.get(_PlainTensors())  # outside of `gradients` nothing is kept
    # a quantised weight has no memory of its own, and is not used as it is
    keeping.count = _Count(limit, {_place(weight) for weight in model.parameters() if type(weight.data) is Tensor})
    try:
        yield keeping.count
    finally:
        keeping.count = None


def blocks_of(module: torch.nn.Module) -> list[torch.nn.Module]:
    """The parts whose activations to recompute together: each is called, and holds at most an eighth of the weights."""
    largest = sum(weight.numel() for weight in module.parameters()) / 8

    def search(part: torch.nn.Module):
        for child in part.children():
            called = type(child).forward is not torch.nn.Module.forward and not isinstance(child, torch.nn.Sequential)
            if not called or sum(weight.numel() for weight in child.parameters()) > largest:
                yield from search(child)
            elif any(True for _ in child.children()):
                yield child

    return list(search(module))


@contextmanager
def _recomputing(model: torch.nn.Module, recomputed: Callable):
    """Inside, what blocks compute is not kept but computed again on the way back; afterwards they are as before."""
    blocks = blocks_of(model)
    before = [vars(block).get("forward") for block in blocks]

    def with_its_hooks(forward: Callable, *args, **kwargs):
        patcher = getattr(model, "current_patcher", None)
        hooks = patcher and patcher.current_hooks  # LoRA hooks are written into the weights, for some prompts only

        def call(*args, **kwargs):
            if patcher:
                patcher.apply_hooks(hooks)
            return forward(*args, **kwargs)

        return recomputed(call, *args, **kwargs)

    try:
        for block in blocks:
            block.forward = partial(with_its_hooks, block.forward)
        yield
    finally:
        for block, forward in zip(blocks, before, strict=True):
            del block.forward
            if forward is not None:
                block.forward = forward


def _recomputed(forward: Callable, *args, **kwargs):
    # blocks note their place in the options they are given: each time they get a copy of these, as they are now
    values, structure = tree_flatten((args, kwargs))
    places = [place for place, value in enumerate(values) if isinstance(value, Tensor) and value.requires_grad]
    tensors = [values[place] for place in places]
    values = [None if place in places else value for place, value in enumerate(values)]  # kept, but not those tensors

    def call(*tensors: Tensor):
        own = list(values)
        for place, tensor in zip(places, tensors, strict=True):
            own[place] = tensor.clone()  # the block may change it
        own_args, own_kwargs = tree_unflatten(own, structure)
        return forward(*own_args, **own_kwargs)

    return _ComputedTwice.apply(call, *tensors) if places else forward(*args, **kwargs)


def _recomputed_with_weights(forward: Callable, *args, **kwargs):
    """The same by PyTorch's checkpoint, which finds the weights, but does not notice that what it saved was changed."""
    kept = tree_map(_copied, (args, kwargs))

    def call():
        own_args, own_kwargs = tree_map(_copied, kept)
        return forward(*own_args, **own_kwargs)

    return checkpoint(call, use_reentrant=False)


def _copied(value):
    return value.clone() if isinstance(value, Tensor) else value


class _ComputedTwice(torch.autograd.Function):
    """`call(*tensors)`, of which nothing but its input is kept for the way back.

    PyTorch's own checkpoint does not notice when what it has saved is changed in place.
    """

    @staticmethod
    def forward(ctx, call: Callable, *tensors: Tensor):
        ctx.call = call
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)
        return call(*tensors)

    @staticmethod
    def backward(ctx, *given: Tensor):
        with gradients():
            tensors = [tensor.detach().requires_grad_() for tensor in ctx.saved_tensors]
            out = ctx.call(*tensors)
            pairs = zip(out if isinstance(out, tuple) else (out,), given, strict=True)
            reached = [(each, gradient) for each, gradient in pairs if gradient is not None and each.requires_grad]
            if not reached:  # what the block gave does not depend on them
                return None, *(None for _ in tensors)
            outs, back = zip(*reached, strict=True)
            return None, *torch.autograd.grad(outs, tensors, back, allow_unused=True)


def gradient_options(model_options: dict) -> dict:
    """The model options for calls inside `gradients`: attention that has a way back."""
    transformer_options = dict(model_options.get("transformer_options", {}))
    previous = transformer_options.get("optimized_attention_override")
    # the host's own override only picks a back-end; another may change the attention, and is called
    picks = previous is None or "set_model_optimized_attention" in getattr(previous, "__qualname__", "")

    def attention_override(_, *args, **kwargs):
        return attention_pytorch(*args, **kwargs) if picks else previous(attention_pytorch, *args, **kwargs)

    transformer_options["optimized_attention_override"] = attention_override
    return {**model_options, "transformer_options": transformer_options}
