"""JPEG as a measurement: which pictures compress to a file that is seen decoded (ITU-T T.81, 1992; JFIF 1.02).

A file says in which cell of width Q each coefficient of the blocks' cosine transform lies. The distance to the cells is
convex, and 0 for every picture that compresses to the file; rounding itself has no gradient.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import pi, sqrt

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

Table = tuple[tuple[int, ...], ...]

LUMA: Table = (
    (16, 11, 10, 16, 24, 40, 51, 61), (12, 12, 14, 19, 26, 58, 60, 55), (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62), (18, 22, 37, 56, 68, 109, 103, 77), (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101), (72, 92, 95, 98, 112, 100, 103, 99),
)  # fmt: skip
CHROMA: Table = (
    (17, 18, 24, 47, 99, 99, 99, 99), (18, 21, 26, 66, 99, 99, 99, 99), (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99), *[(99,) * 8] * 4,
)  # fmt: skip
"""T.81's tables K.1 and K.2, by vertical and horizontal frequency: what libjpeg scales."""


def quantisation(table: Table, quality: int) -> Tensor:
    """(8, 8): the table as libjpeg scales it for a quality of 1 to 100."""
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    return ((torch.tensor(table) * scale + 50) // 100).clamp(1, 255)


def cosines() -> Tensor:
    """(8, 8): the orthonormal cosine transform, a frequency a row."""
    at = torch.arange(8, dtype=torch.float64)
    rows = torch.cos((2.0 * at + 1.0) * at[:, None] * pi / 16.0) / 2.0
    rows[0] /= sqrt(2.0)
    return rows


def coefficients(plane: Tensor) -> Tensor:
    """The transform of each whole 8x8 block of (batch, h, w), as (batch, rows, columns, 8, 8)."""
    height, width = (side // 8 * 8 for side in plane.shape[-2:])
    rows = torch.unflatten(plane[..., :height, :width], 1, (-1, 8))
    blocks = torch.unflatten(rows, 3, (-1, 8)).transpose(2, 3)
    transform = cosines().to(plane)
    return transform @ blocks @ transform.T


@dataclass(frozen=True)
class Plane:
    """Luma or chroma of pictures as JPEG stores it."""

    values: Tensor
    """(batch, h, w), -128 to 127"""
    table: Table
    cell: int
    """How many pixels to a side of one of its values."""


def planes(pictures: Tensor, subsampled: bool) -> Iterator[Plane]:
    """Y, Cb and Cr of (batch, 3, h, w), 0 to 1, chroma the mean of 2x2 pixels where `subsampled`; of gray Y alone."""
    if pictures.shape[1] == 1:
        yield Plane(255.0 * pictures[:, 0] - 128.0, LUMA, 1)
        return
    red, green, blue = (255.0 * pictures).unbind(1)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    yield Plane(luma - 128.0, LUMA, 1)
    for colour, share in ((blue, 0.114), (red, 0.299)):
        chroma = (colour - luma) / (2.0 * (1.0 - share))
        yield Plane(avg_pool2d(chroma[:, None], 2)[:, 0], CHROMA, 2) if subsampled else Plane(chroma, CHROMA, 1)


@dataclass(frozen=True)
class JPEG:
    """Compressed with libjpeg's tables at this quality; 4:2:0 where `subsampled`. The last operator of a chain."""

    quality: int = 75
    subsampled: bool = True

    def fitted(self, size: tuple[int, int], measured: tuple[int, int]) -> "JPEG":
        least = 16 if self.subsampled else 8
        if min(size) < least:
            raise ValueError(
                f"the picture that is compressed is {size[1]}x{size[0]}, and JPEG's blocks are {least}x{least} here; "
                "take a larger one"
            )
        return self

    def size(self, size: tuple[int, int]) -> tuple[int, int]:
        return size

    def __call__(self, pictures: Tensor) -> Tensor:
        raise TypeError("JPEG has cells, see `gaps`")

    def gaps(self, measured: Tensor, weight: Tensor) -> Callable[[Tensor], Tensor]:
        """A function of pictures: each one's sum of squares by which coefficients are outside of their cells, (batch,).

        In units of pictures from 0 to 1. `measured` is the decoded file, (1 or batch, channels, h, w); of `weight`
        (1 or batch, 1, h, w) a block's mean counts. Blocks that the file pads are left out.
        """
        cells: list[tuple[Tensor, Tensor, Tensor]] = []
        for plane in planes(measured, self.subsampled):
            step = quantisation(plane.table, self.quality).to(measured)
            middle = (coefficients(plane.values) / step).round() * step
            cells.append((middle, step / 2.0, avg_pool2d(weight, 8 * plane.cell)[:, 0, :, :, None, None]))

        def distances(pictures: Tensor) -> Tensor:
            total = pictures.new_zeros(len(pictures))
            for plane, (middle, half, share) in zip(planes(pictures, self.subsampled), cells, strict=True):
                outside = ((coefficients(plane.values) - middle).abs() - half).clamp(min=0.0) / 255.0
                total = total + (share * outside.square()).flatten(1).sum(1)
            return total

        return distances
