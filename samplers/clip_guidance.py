"""CLIP guidance: the distance between a picture's and a target's CLIP embedding, over random cutouts.

Disco Diffusion's and CLIP-guided diffusion's loss (Crowson 2021; Nichol et al. 2022, arXiv:2112.10741, section 2.4, and
Avrahami et al. 2022, arXiv:2111.14818, section 4.1, for the part inside a mask). CLIP sees many cutouts of one picture,
so that a change which only fools it in one of them does not pay.
"""

from typing import cast

import torch
from torch import Tensor
from torch.nn.functional import interpolate, normalize


def spherical_distance(a: Tensor, b: Tensor) -> Tensor:
    """`2 arcsin(|u - v| / 2)^2`: half the squared angle between a and b (..., width), of any norms; 0 to pi^2/2."""
    difference = normalize(a, dim=-1) - normalize(b, dim=-1)
    chord = cast(Tensor, difference.norm(dim=-1))  # pyright: ignore[reportUnknownMemberType]: torch gives no type
    return 2.0 * (chord / 2.0).clamp(max=1.0 - 1e-6).asin().square()


def cutouts(pictures: Tensor, draws: Tensor, size: int, smallest: float = 0.0) -> Tensor:
    """Random squares of each picture, as CLIP takes them: (batch, 3, h, w) to (batch, cutouts, 3, size, size).

    `draws` (batch, cutouts, 3) are uniform in 0..1: side, top and left of each. The sides run evenly from CLIP's `size`
    or `smallest` of the picture's shorter side, whichever is more, to the shorter side.
    """
    height, width = pictures.shape[-2:]
    longest = min(height, width)
    shortest = min(longest, max(size, round(smallest * longest)))
    out: list[Tensor] = []
    for picture, places in zip(pictures, draws.cpu(), strict=True):
        for part, down, right in (map(float, place) for place in places):
            side = shortest + int(part * (longest - shortest + 1))
            side = min(side, longest)
            top, left = (min(int(at * (end - side + 1)), end - side) for at, end in ((down, height), (right, width)))
            square = picture[None, :, top : top + side, left : left + side]
            # as CLIP's own preprocessing resizes
            out.append(interpolate(square, (size, size), mode="bicubic", antialias=True, align_corners=False))
    return torch.unflatten(torch.cat(out), 0, draws.shape[:2])


def within_range(pictures: Tensor) -> Tensor:
    """Clamped to 0..1; the gradient passes as if they were not, since one that stops at the ends cannot come back."""
    return pictures + (pictures.clamp(0.0, 1.0) - pictures).detach()


def inside(pictures: Tensor, mask: Tensor) -> Tensor:
    """The pictures with mid-grey outside the mask (batch or 1, 1, h, w), which is 0 in the paper's -1..1."""
    return mask * pictures + (1.0 - mask) * 0.5
