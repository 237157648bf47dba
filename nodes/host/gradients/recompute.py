"""Activations that are computed again in the backward, block by block (gradient checkpointing)."""

from collections.abc import Callable
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten
from torch.utils.checkpoint import checkpoint

from ..attention.override import as_now
from .tensors import gradients


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
def recomputing(model: torch.nn.Module, recomputed: Callable):
    """Inside, what blocks compute is not kept but computed again in the backward; afterwards they are as before."""
    blocks = blocks_of(model)
    before = [vars(block).get("forward") for block in blocks]

    def with_its_hooks(forward: Callable, *args, **kwargs):
        patcher = getattr(model, "current_patcher", None)
        hooks = patcher and patcher.current_hooks  # LoRA hooks are written into the weights, for some prompts only
        attention = as_now(*args, *kwargs.values())

        def call(*args, **kwargs):
            if patcher:
                patcher.apply_hooks(hooks)
            with attention():
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


def recomputed(forward: Callable, *args, **kwargs):
    # blocks write into the options that they get: each time they get a copy of the options as they are now
    values, structure = tree_flatten((args, kwargs))
    places = [place for place, value in enumerate(values) if isinstance(value, Tensor) and value.requires_grad]
    tensors = [values[place] for place in places]
    # without the tensors, which autograd keeps
    values = [None if place in places else value for place, value in enumerate(values)]

    def call(*tensors: Tensor):
        own = [_copied(value) for value in values]  # the block may change them
        for place, tensor in zip(places, tensors, strict=True):
            own[place] = tensor.clone()
        own_args, own_kwargs = tree_unflatten(own, structure)
        return forward(*own_args, **own_kwargs)

    return _ComputedTwice.apply(call, *tensors) if places else forward(*args, **kwargs)


def recomputed_with_weights(forward: Callable, *args, **kwargs):
    """The same by PyTorch's checkpoint: weights get gradients too, but what it saves must not be changed in place."""
    kept = tree_map(_copied, (args, kwargs))

    def call():
        own_args, own_kwargs = tree_map(_copied, kept)
        return forward(*own_args, **own_kwargs)

    return checkpoint(call, use_reentrant=False)


def _copied(value):
    return value.clone() if isinstance(value, Tensor) else value


class _ComputedTwice(torch.autograd.Function):
    """`call(*tensors)`, of which nothing but its input is kept for the backward.

    PyTorch's own checkpoint does not notice when what it has saved is changed in place.
    """

    @staticmethod
    def forward(ctx, call: Callable, *tensors: Tensor):
        ctx.call = call
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)
        return call(*tensors)

    @staticmethod
    def backward(ctx, *out_gradients: Tensor):
        with gradients():
            tensors = [tensor.detach().requires_grad_() for tensor in ctx.saved_tensors]
            out = ctx.call(*tensors)
            pairs = zip(out if isinstance(out, tuple) else (out,), out_gradients, strict=True)
            used = [(value, gradient) for value, gradient in pairs if gradient is not None and value.requires_grad]
            if not used:  # nothing that the block returned depends on its input
                return None, *(None for _ in tensors)
            outs, grad_outs = zip(*used, strict=True)
            return None, *torch.autograd.grad(outs, tensors, grad_outs, allow_unused=True)
