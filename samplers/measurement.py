"""Pictures that were measured: what was done to a picture, as operators that chain, and how far one is from a result.

`-log p(y | x)` of `y = A x + noise e`, with A known and linear (Kawar et al. 2022, arXiv:2201.11793; Chung et al. 2023,
arXiv:2209.14687, eq. 16). Pictures are (batch, channels, height, width), 0 to 1, sizes (height, width).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import ceil, cos, radians, sin
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import conv2d, interpolate, pad

Size = tuple[int, int]
LUMA = 0.299, 0.587, 0.114  # ITU-R BT.601, as JPEG and Pillow
METHODS = "area", "bicubic", "lanczos"


class Operator(Protocol):
    """What was done to a picture; all but a last one are linear."""

    def fitted(self, size: Size, measured: Size) -> "Operator":
        """The operator for pictures of this size, of which something `measured` in size was made at the end."""
        ...

    def size(self, size: Size) -> Size:
        """What a fitted operator makes of a size."""
        ...

    def __call__(self, pictures: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Gray:
    """The weighted mean of the colours; of what is gray already, itself."""

    def fitted(self, size: Size, measured: Size) -> "Gray":
        return self

    def size(self, size: Size) -> Size:
        return size

    def __call__(self, pictures: Tensor) -> Tensor:
        if pictures.shape[1] == 1:
            return pictures
        return (pictures * pictures.new_tensor(LUMA)[:, None, None]).sum(1, keepdim=True)


@dataclass(frozen=True)
class Resize:
    """Resized with an antialiasing filter, to the size of what was measured where it is 0."""

    width: int = 0
    height: int = 0
    method: str = "area"

    def fitted(self, size: Size, measured: Size) -> "Resize":
        height, width = self.height or measured[0], self.width or measured[1]
        if not self.height and not self.width and abs(height - width * size[0] / size[1]) > 1.0:
            raise ValueError(
                f"image is {width}x{height} and the picture that is resized {size[1]}x{size[0]}, of another aspect; "
                "crop one of them first, or give a width and a height to resize to"
            )
        return replace(self, width=width, height=height)

    def size(self, size: Size) -> Size:
        return self.height, self.width

    def __call__(self, pictures: Tensor) -> Tensor:
        if self.method == "lanczos":
            down, across = (
                lanczos(before, after).to(pictures)
                for before, after in zip(pictures.shape[-2:], (self.height, self.width), strict=True)
            )
            return down @ pictures @ across.T
        antialias = {} if self.method == "area" else {"antialias": True, "align_corners": False}
        return interpolate(pictures, (self.height, self.width), mode=self.method, **antialias)


def lanczos(before: int, after: int) -> Tensor:
    """(after, before): the weights of Pillow's LANCZOS, three lobes as wide as the pixels of the smaller side."""
    scale = before / after
    wide = max(scale, 1.0)
    middle = (torch.arange(after, dtype=torch.float64) + 0.5) * scale
    x = (torch.arange(before, dtype=torch.float64) + 0.5 - middle[:, None]) / wide
    weights = torch.where(x.abs() < 3.0, torch.sinc(x) * torch.sinc(x / 3.0), 0.0)
    return weights / weights.sum(1, keepdim=True)


@dataclass(frozen=True)
class Blur:
    """Out of focus by a Gaussian of this std, and moved by so many pixels in the direction of the angle (degrees)."""

    std: float = 2.0
    motion: int = 1
    angle: float = 0.0

    def fitted(self, size: Size, measured: Size) -> "Blur":
        radius = max(kernel.shape[-1] // 2 for kernel in self._kernels())
        if radius >= min(size):
            raise ValueError(
                f"a blur of std {self.std:g} and motion {self.motion} reaches {radius} pixels far, and the picture is "
                f"{size[1]}x{size[0]}; lower them"
            )
        return self

    def size(self, size: Size) -> Size:
        return size

    def _kernels(self) -> tuple[Tensor, Tensor]:
        return gaussian(self.std), line(self.motion, self.angle)

    def __call__(self, pictures: Tensor) -> Tensor:
        for kernel in self._kernels():
            radius, channels = kernel.shape[-1] // 2, pictures.shape[1]
            if radius:
                padded = pad(pictures, [radius] * 4, mode="reflect")
                pictures = conv2d(padded, kernel.to(pictures).expand(channels, 1, -1, -1), groups=channels)
        return pictures


def gaussian(std: float) -> Tensor:
    """(side, side), four std far, of sum 1; std 0 is a single 1."""
    radius = ceil(4.0 * std)
    row = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, dtype=torch.float64) / max(std, 1e-6)) ** 2)
    kernel = row[:, None] * row
    return kernel / kernel.sum()


def line(length: int, angle: float) -> Tensor:
    """(side, side), of sum 1: as many points a pixel apart, counter-clockwise from the right, shared between pixels."""
    radius = ceil((length - 1) / 2)
    along = torch.arange(length, dtype=torch.float64) - (length - 1) / 2
    at = torch.arange(-radius, radius + 1, dtype=torch.float64)
    down, across = (
        (1.0 - (at - (along * way)[:, None]).abs()).clamp(min=0.0)
        for way in (-sin(radians(angle)), cos(radians(angle)))
    )
    kernel = torch.einsum("pi,pj->ij", down, across)
    return kernel / kernel.sum()


@dataclass(frozen=True)
class Crop:
    """The part that begins at (x, y); as large as what was measured where width and height are 0."""

    x: int = 0
    y: int = 0
    width: int = 0
    height: int = 0

    def fitted(self, size: Size, measured: Size) -> "Crop":
        height, width = self.height or measured[0], self.width or measured[1]
        if self.y + height > size[0] or self.x + width > size[1]:
            raise ValueError(
                f"the crop of {width}x{height} at x {self.x}, y {self.y} ends beyond the picture of "
                f"{size[1]}x{size[0]}; move it, or sample a larger latent"
            )
        return replace(self, width=width, height=height)

    def size(self, size: Size) -> Size:
        return self.height, self.width

    def __call__(self, pictures: Tensor) -> Tensor:
        return pictures[..., self.y : self.y + self.height, self.x : self.x + self.width]


def fitted(operators: Sequence[Operator], size: Size, measured: Size) -> tuple[Operator, ...]:
    """The operators for pictures of this size; ValueError unless they make what was measured of it."""
    sized, made = list[Operator](), size
    for operator in operators:
        sized.append(operator.fitted(made, measured))
        made = sized[-1].size(made)
    if made != measured:
        after = ", after the operators," if operators else ""
        raise ValueError(
            f"image is {measured[1]}x{measured[0]} and the picture of latent_image{after} {made[1]}x{made[0]}; say "
            "what became of it by SteerResizeOperator (it was made smaller) or SteerCropOperator (it is a part), or "
            "scale the image"
        )
    return tuple(sized)


def squared_gaps(operators: Sequence[Operator], measured: Tensor, weight: Tensor) -> Callable[[Tensor], Tensor]:
    """A function of pictures: each one's sum of `weight (A x - y)^2`, (batch,).

    The operators are `fitted`. `measured` is y in colours (1 or batch, 3, h, w), also where A makes it gray; `weight`
    (1 or batch, 1, h, w). A last operator with cells, such as JPEG, has distances of its own.
    """
    if any(isinstance(operator, Gray) for operator in operators):
        measured = Gray()(measured)
    *linear, last = operators or (None,)
    gaps = getattr(last, "gaps", None)
    if gaps is None:
        linear = operators

    def applied(pictures: Tensor) -> Tensor:
        for operator in linear:
            pictures = operator(pictures)
        return pictures

    if gaps is not None:
        distances = gaps(measured, weight)
        return lambda pictures: distances(applied(pictures))
    return lambda pictures: (weight * (applied(pictures) - measured).square()).flatten(1).sum(1)
