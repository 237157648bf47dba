"""Attention of transformers with rotary positions, whose backward is fast on the CPU; for trainers."""

import torch
from torch import Tensor


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Of queries, keys and values by head (n, heads, tokens, width); (n, tokens, heads * width)."""
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    return flat(logits.softmax(-1).to(v.dtype) @ v)


def turned(x: Tensor, turn: Tensor) -> Tensor:
    """Rotary positions: the channels by pairs, as complex numbers, times `turn` (tokens, pairs)."""
    pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * turn).flatten(-2).to(x.dtype)


def by_head(x: Tensor, heads: int) -> Tensor:
    """(n, tokens, heads * width) to (n, heads, tokens, width)."""
    return x.view(*x.shape[:2], heads, -1).transpose(1, 2)


def flat(x: Tensor) -> Tensor:
    """The inverse of `by_head`."""
    return x.transpose(1, 2).flatten(2)
