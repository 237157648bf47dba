"""Heatmaps as a picture: for each word the dimmed picture, the heat glowing over it, and the word below."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SMALLEST, LARGEST = 256, 512  # pixels of a cell's height
PER_LINE = 8  # cells; more go on in the next line
PAPER, INK, FAINT = (18, 18, 22), (240, 240, 244), (140, 140, 150)
# matplotlib's inferno (van der Walt and Smith, CC0) at nine points: even in lightness, whatever eyes or printer
COLOURS = np.array([
    (0, 0, 4), (33, 12, 74), (86, 16, 110), (137, 34, 106), (187, 55, 84),
    (227, 89, 50), (249, 140, 10), (249, 201, 50), (252, 255, 164),
]) / 255.0  # fmt: skip
DARKEST, BRIGHTEST, COLOUR_KEPT = 0.08, 0.45, 0.2  # of the picture under the heat


def heatmap_picture(heats: np.ndarray, words: list[str], image: np.ndarray | None = None) -> np.ndarray:
    """(height, width, 3), 0 to 1: a labelled cell for each word, after one of the picture if there is one.

    `heats` (words, height, width) and `image` (height, width, 3), 0 to 1, of the same size.
    """
    height = min(max(heats.shape[1], SMALLEST), LARGEST)
    size = max(1, round(heats.shape[2] * height / heats.shape[1])), height
    picture = None if image is None else _resized(image, size)
    cells = [] if picture is None else [(picture, "image", FAINT)]
    cells += [(overlaid(_resized(heat, size), picture), word, INK) for heat, word in zip(heats, words, strict=True)]
    return _sheet(cells, size)


def overlaid(heat: np.ndarray, picture: np.ndarray | None) -> np.ndarray:
    """The heat (height, width) as colours, over the picture where there is one: the hotter, the less of the picture."""
    places = np.linspace(0.0, 1.0, len(COLOURS))
    colour = np.stack([np.interp(heat, places, channel) for channel in COLOURS.T], -1)
    if picture is None:
        return colour
    light = (picture @ np.array([0.299, 0.587, 0.114]))[..., None]
    under = DARKEST + (BRIGHTEST - DARKEST) * (COLOUR_KEPT * picture + (1.0 - COLOUR_KEPT) * light)
    share = (1.0 - (1.0 - heat) ** 2)[..., None]
    return under + share * (colour * (0.8 + 0.2 * light) - under)  # some of the picture's shading stays


def _resized(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(height, width) or with channels, without rounding to bytes."""
    planes = values[..., None] if values.ndim == 2 else values
    done = [
        np.asarray(
            Image.fromarray(np.ascontiguousarray(planes[..., i], np.float32)).resize(size, Image.Resampling.BICUBIC)
        )
        for i in range(planes.shape[-1])
    ]
    return np.clip(done[0] if values.ndim == 2 else np.stack(done, -1), 0.0, 1.0)


def _sheet(cells: list[tuple[np.ndarray, str, tuple]], size: tuple[int, int]) -> np.ndarray:
    width, height = size
    gap, label = height // 24, height // 6
    columns = min(len(cells), PER_LINE)
    lines = -(-len(cells) // columns)
    sheet = Image.new("RGB", (gap + columns * (width + gap), gap + lines * (height + label)), PAPER)
    draw, corners = ImageDraw.Draw(sheet), _rounded(size, height // 32)
    for number, (cell, word, ink) in enumerate(cells):
        left, top = gap + number % columns * (width + gap), gap + number // columns * (height + label)
        sheet.paste(Image.fromarray((cell * 255.0).round().astype(np.uint8)), (left, top), corners)
        word, font = fitted(word, width + gap // 2, height // 11)
        draw.text((left + width / 2, top + height + label / 2 - gap / 4), word, ink, font, anchor="mm")
    return np.asarray(sheet, np.float32) / 255.0


def fitted(word: str, width: int, points: int) -> tuple[str, ImageFont.FreeTypeFont]:
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
