"""Heatmaps as a picture: for each word the dimmed picture, the heat glowing over it, and the word below."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Floats = NDArray[np.floating[Any]]

SMALLEST, LARGEST = 256, 512  # pixels of a cell's height
PER_LINE = 8  # cells; more go on in the next line
PAPER, INK, FAINT = (18, 18, 22), (240, 240, 244), (140, 140, 150)
# matplotlib's inferno (van der Walt and Smith, CC0) at nine points: even in lightness, whatever eyes or printer
COLOURS: NDArray[np.float64] = np.array([
    (0, 0, 4), (33, 12, 74), (86, 16, 110), (137, 34, 106), (187, 55, 84),
    (227, 89, 50), (249, 140, 10), (249, 201, 50), (252, 255, 164),
]) / 255.0  # fmt: skip
DARKEST, BRIGHTEST, COLOUR_KEPT = 0.08, 0.45, 0.2  # of the picture under the heat


def heatmap_picture(heats: Floats, words: list[str], image: Floats | None = None) -> Floats:
    """(height, width, 3), 0 to 1: a labelled cell for each word, after one of the picture if there is one.

    `heats` (words, height, width) and `image` (height, width, 3), 0 to 1, of the same size.
    """
    height = min(max(heats.shape[1], SMALLEST), LARGEST)
    size = max(1, round(heats.shape[2] * height / heats.shape[1])), height
    picture = None if image is None else _resized(image, size)
    cells = [] if picture is None else [(picture, "image", FAINT)]
    cells += [(overlaid(_resized(heat, size), picture), word, INK) for heat, word in zip(heats, words, strict=True)]
    return _sheet(cells, size)


def overlaid(heat: Floats, picture: Floats | None) -> Floats:
    """The heat (height, width) as colours, over the picture where there is one: the hotter, the less of the picture."""
    places = np.linspace(0.0, 1.0, len(COLOURS))
    colour = np.stack([np.interp(heat, places, COLOURS[:, channel]) for channel in range(3)], -1)
    if picture is None:
        return colour
    light = (picture @ np.array([0.299, 0.587, 0.114]))[..., None]
    under = DARKEST + (BRIGHTEST - DARKEST) * (COLOUR_KEPT * picture + (1.0 - COLOUR_KEPT) * light)
    share = (1.0 - (1.0 - heat) ** 2)[..., None]
    return under + share * (colour * (0.8 + 0.2 * light) - under)  # some of the picture's shading stays


def _resized(values: Floats, size: tuple[int, int]) -> Floats:
    """(height, width) or with channels, without rounding to bytes."""
    planes = values[..., None] if values.ndim == 2 else values
    done: list[Floats] = [
        np.asarray(
            Image.fromarray(np.ascontiguousarray(planes[..., i], np.float32)).resize(size, Image.Resampling.BICUBIC)
        )
        for i in range(planes.shape[-1])
    ]
    resized = done[0] if values.ndim == 2 else np.stack(done, -1)
    return np.minimum(np.maximum(resized, 0.0), 1.0)


def _sheet(cells: list[tuple[Floats, str, tuple[int, int, int]]], size: tuple[int, int]) -> Floats:
    width, height = size
    gap, label = height // 24, height // 6
    columns = min(len(cells), PER_LINE)
    lines = -(-len(cells) // columns)
    sheet = Image.new("RGB", (gap + columns * (width + gap), gap + lines * (height + label)), PAPER)
    draw, corners = ImageDraw.Draw(sheet), _rounded(size, height // 32)
    for number, (cell, word, ink) in enumerate(cells):
        left, top = gap + number % columns * (width + gap), gap + number // columns * (height + label)
        sheet.paste(Image.fromarray(np.rint(cell * 255.0).astype(np.uint8)), (left, top), corners)
        word, font = fitted(word, width + gap // 2, height // 11)
        draw.text((left + width / 2, top + height + label / 2 - gap / 4), word, ink, font, anchor="mm")
    return np.asarray(sheet, np.float32) / 255.0


def fitted(word: str, width: int, points: int) -> tuple[str, ImageFont.FreeTypeFont | ImageFont.ImageFont]:
    """The word and a font in which it fits the width: smaller for a long one, which is cut if it is longer still."""
    smallest = points // 2
    while points > smallest and ImageFont.load_default(points).getlength(word) > width:
        points -= 1
    font = ImageFont.load_default(points)
    if font.getlength(word) > width:
        while word and font.getlength(word + "…") > width:
            word = word[:-1]
        word = word.rstrip() + "…"
    return word, font


def _rounded(size: tuple[int, int], radius: int) -> Image.Image:
    mask = Image.new("L", (4 * size[0], 4 * size[1]))
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, *(side - 1 for side in mask.size)), 4 * radius, 255)
    return mask.resize(size, Image.Resampling.BOX)
