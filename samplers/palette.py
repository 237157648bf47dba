"""The distance of two pictures' colours, wherever they are: sliced Wasserstein-1.

SW-Guidance (Lobashev, Larchenko and Guskov 2025, arXiv:2503.19034) lets it steer a diffusion model. Along a direction
in the space of colours Wasserstein-1 is the mean difference of the sorted values; directions drawn at random are
averaged (Bonneel et al. 2015, doi:10.1007/s10851-014-0506-3).
"""

from math import ceil, sqrt

import torch
from torch import Tensor
from torch.nn.functional import interpolate, normalize

PIXELS = 4096
"""At most so many of a picture are compared."""


def reduced(pictures: Tensor) -> Tensor:
    """Pictures (batch, channels, h, w) of at most PIXELS pixels, which are means of several where there are more."""
    height, width = pictures.shape[-2:]
    cell = sqrt(height * width / PIXELS)
    if cell <= 1.0:
        return pictures
    size = [max(1, int(side / ceil(cell))) for side in (height, width)]
    return interpolate(pictures, size, mode="area")


def sliced_wasserstein(pixels: Tensor, reference: Tensor, directions: Tensor, weight: Tensor | None = None) -> Tensor:
    """(batch,), in the pixels' unit, from pixels (batch, n, 3), a reference's (1 or batch, m, 3) and directions.

    Directions (batch, k, 3) are of any length. `weight` (1 or batch, n), not negative, is how much each pixel counts.
    """
    along = normalize(directions, dim=-1).mT
    levels = max(pixels.shape[1], reference.shape[1])
    ones = torch.ones_like(reference[..., 0])
    values = quantiles(pixels @ along, torch.ones_like(pixels[..., 0]) if weight is None else weight, levels)
    wanted = quantiles(reference @ along, ones, levels)
    return (values - wanted).abs().mean((1, 2))


def quantiles(values: Tensor, weight: Tensor, levels: int) -> Tensor:
    """The values (batch, n, k), sorted, at so many even levels (batch, levels, k), by their weights (1 or batch, n)."""
    values, order = values.sort(1)
    weight = weight.double()[..., None].expand(values.shape).gather(1, order)
    reached = (weight.cumsum(1) / weight.sum(1, keepdim=True).clamp(min=1e-30)).mT.contiguous()
    middles = (torch.arange(levels, device=values.device, dtype=torch.float64) + 0.5) / levels
    places = torch.searchsorted(reached, middles.expand(*reached.shape[:2], levels).contiguous())
    return values.gather(1, places.clamp(max=values.shape[1] - 1).mT)
