"""How far two pictures' depths are from each other, which are known but for a scale and a shift.

One minus their correlation, which tells a depth from its inverse, and the gradients of what is left after a fit of
scale and shift, at several scales (Ranftl et al. 2020, arXiv:1907.01341, eq. 11). Depths are as disparity, which is
1 / distance: in it estimates of one picture differ by scale and shift.
"""

import torch
from torch import Tensor

SCALES = 4
GRADIENTS = 0.5
"""Weight of the gradients beside the correlation."""


def depth_distance(disparity: Tensor, wanted: Tensor, valid: Tensor) -> Tensor:
    """(batch,) of disparities (batch, h, w), where `valid` (batch, h, w) is 1; 0 elsewhere, as in the sky.

    0 for `a wanted + b` with a > 0, 2 with a < 0, about 1 and more for one that has nothing to do with it.
    """
    valid = valid.to(disparity)
    ours, theirs = (standardised(each, valid) for each in (disparity, wanted))
    count = valid.sum((1, 2)).clamp(min=1.0)
    correlation = (ours * theirs).sum((1, 2)) / count
    # `a disparity + b - wanted` over wanted's standard deviation, for the a and b with the least squares
    rest = correlation[:, None, None] * ours - theirs
    slopes = sum((steepness(rest[:, ::step, ::step], valid[:, ::step, ::step]) for step in steps()), torch.zeros(()))
    return 1.0 - correlation + GRADIENTS * slopes


def steps() -> list[int]:
    return [2**scale for scale in range(SCALES)]


def standardised(values: Tensor, valid: Tensor) -> Tensor:
    """Of mean 0 and mean square 1 where they are valid, else 0."""
    count = valid.sum((1, 2), keepdim=True).clamp(min=1.0)
    centred = (values - (values * valid).sum((1, 2), keepdim=True) / count) * valid
    return centred / (centred.square().sum((1, 2), keepdim=True) / count).clamp(min=1e-24).sqrt()


def steepness(values: Tensor, valid: Tensor) -> Tensor:
    """The mean of |difference to the right| + |difference to below|, between valid pixels."""
    across = (values.diff(dim=2).abs() * valid[:, :, 1:] * valid[:, :, :-1]).sum((1, 2))
    down = (values.diff(dim=1).abs() * valid[:, 1:] * valid[:, :-1]).sum((1, 2))
    return (across + down) / valid.sum((1, 2)).clamp(min=1.0)


def size_for(size: tuple[int, int], resolution: int, patch: int = 14) -> tuple[int, int]:
    """(height, width) with the longer side about `resolution`, of whole patches."""
    share = resolution / max(size)
    height, width = (max(1, round(side * share / patch)) * patch for side in size)
    return height, width
