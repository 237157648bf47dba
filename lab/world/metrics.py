"""What pictures are measured by, the same in benchmarks and tests.

Pictures are (height, width, 3), uint8 or floats in 0..1, NumPy arrays or CPU tensors; masks are (height, width).
"""

import math
from collections.abc import Iterable

import numpy as np
from scipy import ndimage

from .reader import DISTANCE, distance, read_image, score


def psnr(a, b, where=None) -> float:
    """Peak signal-to-noise ratio of two pictures in dB, infinite for equal ones; the rest as of `mse`."""
    error = mse(a, b, where)
    return math.inf if error == 0 else -10 * math.log10(error)


def mse(a, b, where=None) -> float:
    """Mean squared difference of two pictures.

    `where`: weights of the pixels, 1 counts and 0 does not. ValueError when the sizes differ or nothing counts.
    """
    a, b = _unit(a), _unit(b)
    if a.shape != b.shape:
        raise ValueError(f"the pictures differ in shape: {a.shape} and {b.shape}")
    weight = np.ones(a.shape[:2]) if where is None else np.asarray(where, float)
    if weight.shape != a.shape[:2] or weight.sum() <= 0:
        raise ValueError(
            f"where has shape {weight.shape} and sum {weight.sum():g}; "
            f"it needs shape {a.shape[:2]} and something that counts"
        )
    return float((((a - b) ** 2).mean(-1) * weight).sum() / weight.sum())


def iou(a, b) -> float:
    """Intersection over union of two masks, soft ones included (sum of minima over sum of maxima); 1 for two empty."""
    a, b = np.asarray(a, float), np.asarray(b, float)
    if a.shape != b.shape:
        raise ValueError(f"the masks differ in shape: {a.shape} and {b.shape}")
    union = np.maximum(a, b).sum()
    return float(np.minimum(a, b).sum() / union) if union > 0 else 1.0


def object_mask(picture) -> np.ndarray:
    """What is not background in a uint8 shapes picture, by colour: True and False."""
    return distance(picture, read_image(picture)["bg_rgb"]) > DISTANCE


def grown(mask, pixels: int) -> np.ndarray:
    """A mask of True and False, larger by so many pixels on every side (a square about each)."""
    return ndimage.maximum_filter(mask, 2 * pixels + 1, mode="constant", cval=False)


def attributes(picture, caption: str, hole=None) -> dict[str, float]:
    """How a shapes picture matches its caption: the reader's `score` as numbers from 0 to 1.

    With a `hole` (mask, above 0.5 is inside) only what is inside is judged, against a caption of the hole's content:
    the rest is painted over with the picture's own background, so that it counts neither for nor against.
    """
    pixels = np.round(_unit(picture) * 255).astype(np.uint8)
    if hole is not None:
        outside = np.asarray(hole) <= 0.5
        pixels = pixels.copy()
        pixels[outside] = np.round(read_image(pixels)["bg_rgb"])
    return {name: float(value) for name, value in score(pixels, caption).items()}


def aggregate(rows: Iterable[dict]) -> dict[str, float]:
    """The mean of each figure over the rows that have it."""
    rows = list(rows)
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: float(np.mean([row[name] for row in rows if name in row])) for name in names}


def markdown_table(rows: list[dict]) -> str:
    """Rows of like keys as a Markdown table, the keys as its heads; floats with four significant digits."""
    if not rows:
        raise ValueError("a table needs at least one row, got none")
    heads = list(rows[0])
    lines = [heads, ["---"] * len(heads), *([_cell(row[head]) for head in heads] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _unit(picture) -> np.ndarray:
    """A picture as floats in 0..1."""
    pixels = np.asarray(picture)
    return pixels / 255.0 if pixels.dtype == np.uint8 else pixels.astype(float)


def _cell(value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
