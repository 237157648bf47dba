"""The one place where the host's layouts of queries, keys and values become heads first, and back."""

from collections.abc import Callable

import torch
from comfy.ldm.modules.attention import attention_pytorch, optimized_attention
from torch import Tensor

from ....attention.core import Kernel
from .override import chained


def heads_first(x: Tensor, heads: int) -> Tensor:
    """(batch, heads, tokens, width) of the host's (batch, tokens, channels): a view.

    Also of (batch, tokens, heads, width), as SD3 has its values.
    """
    return (x if x.ndim == 4 else x.unflatten(-1, (heads, -1))).transpose(1, 2)


def flat(x: Tensor) -> Tensor:
    """The host's (batch, tokens, channels) of (batch, heads, tokens, width): of what was flat before, a view."""
    return x.transpose(1, 2).flatten(2)


def flat_kernel(options: dict) -> Kernel:
    """The attention of a layer that asks for it in the flat form: in the other one the last bits may differ."""

    def kernel(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
        heads = q.shape[1]
        out = optimized_attention(
            flat(q), flat(k), flat(v), heads, mask=bias, attn_precision=options["attn_precision"],
            transformer_options=options,
        )  # fmt: skip
        return heads_first(out, heads)

    return kernel


def heads_first_kernel(function: Callable, previous: Callable | None, heads: int, options: dict) -> Kernel:
    """The attention of a layer that calls this back-end with these options, through the override that was there.

    With a bias it is PyTorch's: other back-ends take none, or warn at each call.
    """

    def kernel(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
        back_end = chained(previous, function if bias is None else attention_pytorch)
        return back_end(q, k, v, heads, mask=bias, skip_reshape=True, skip_output_reshape=True, **options)

    return kernel


def as_bias(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """(batch or 1, 1, rows or 1, columns) to be added to logits, of a mask as the host has it."""
    if mask is None:
        return None
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, float("-inf"))
    mask = mask.unsqueeze(0) if mask.ndim == 2 else mask
    return mask.unsqueeze(1) if mask.ndim == 3 else mask
