"""Masks in latent space: 1 = generate, 0 = keep, anything between is a soft edge.

RePaint's paper writes 1 for the known region; everything here has the host's meaning.
"""

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d


def check_mask(mask: Tensor, may_be_empty: bool = False) -> None:
    """ValueError unless the mask is finite, within 0..1 and generates something."""
    if not mask.numel():
        raise ValueError(f"the mask has the shape {tuple(mask.shape)}, which holds nothing")
    low, high = float(mask.min()), float(mask.max())
    # bilinear resizing may leave a rounding error beyond the ends; a NaN fails every comparison
    if not (low >= -1e-4 and high <= 1.0 + 1e-4):
        raise ValueError(f"the mask runs from {low:g} to {high:g}; it needs values from 0 (keep) to 1 (generate)")
    if high <= 0.0 and not may_be_empty:
        raise ValueError("the mask is empty (0 everywhere), so there is nothing to generate; paint the part to change")


def keep(x: Tensor, noised: Tensor, mask: Tensor) -> Tensor:
    """x with the kept region replaced by the source at the same level.

    A soft edge stays in x: mixing two independent noises there would leave less noise than the level asks for.
    The edge is made by `composite` instead.
    """
    return torch.where(mask > 0, x, noised)


def composite(denoised: Tensor, known: Tensor, mask: Tensor) -> Tensor:
    """`mask denoised + (1 - mask) known`: exactly `known` where the mask is 0."""
    return torch.where(mask > 0, mask * denoised + (1.0 - mask) * known, known)


def dilate(mask: Tensor, radius: int) -> Tensor:
    """Grows the mask by a (2 radius + 1)-square in latent pixels; soft values take the largest nearby (4-d or 5-d)."""
    flat = mask.reshape(-1, 1, *mask.shape[-2:])  # the square is spatial: frames and channels are not mixed
    return max_pool2d(flat, 2 * radius + 1, stride=1, padding=radius).reshape(mask.shape)
