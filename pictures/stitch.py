"""Pasting an edit into its source with a soft edge, mixed in linear light (IEC 61966-2-1, sRGB)."""

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d


def feathered(mask: Tensor, feather: int) -> Tensor:
    """The mask (batch, h, w) with a smooth ramp `feather` pixels wide, which lies inside it: nowhere more than before.

    With a negative feather it lies outside: nowhere less than before. A pixel's value is a smoothstep of its distance
    to the other side; the picture's own border counts as neither. Soft masks are ramped at each of their levels.
    """
    if feather < 0:
        return 1.0 - feathered(1.0 - mask, -feather)
    ramp = torch.linspace(0.0, 1.0, feather + 2, dtype=torch.float64)
    weights = map(float, (ramp * ramp * (3.0 - 2.0 * ramp)).diff())
    total, shrunk = torch.zeros_like(mask), mask
    for pixels, weight in enumerate(weights):
        if pixels:
            shrunk = -max_pool2d(-shrunk, 3, stride=1, padding=1)
        total = total + weight * shrunk
    # deep inside, where the weights add up to 1 but for rounding, exactly 1
    return torch.where(shrunk < 1.0, total.clamp(max=1.0), shrunk)


def to_linear(picture: Tensor) -> Tensor:
    """sRGB values to light; 0..1 to 0..1."""
    return torch.where(picture <= 0.04045, picture / 12.92, ((picture.clamp(min=0.0) + 0.055) / 1.055) ** 2.4)


def to_srgb(light: Tensor) -> Tensor:
    """The inverse of `to_linear`."""
    return torch.where(light <= 0.0031308, 12.92 * light, 1.055 * light.clamp(min=0.0) ** (1.0 / 2.4) - 0.055)


def stitch(source: Tensor, edited: Tensor, mask: Tensor) -> Tensor:
    """`mask edited + (1 - mask) source` in light: exactly the source where the mask is 0, the edit where it is 1.

    Pictures (batch, h, w, channels) in sRGB, mask (batch, h, w).
    """
    mask = mask[..., None]
    mixed = to_srgb(torch.lerp(to_linear(source.float()), to_linear(edited.float()), mask.float())).to(source)
    return torch.where(mask <= 0.0, source, torch.where(mask >= 1.0, edited, mixed))
