"""Colour-coded maps: a legend says which colour is the place of which phrase."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import cast

import torch
from PIL import ImageColor
from torch import Tensor


@dataclass(frozen=True)
class Entry:
    """A line of a legend: the colour (0 to 255) of a phrase's place."""

    colour: tuple[int, int, int]
    phrase: str
    strength: float
    written: str
    """The colour as the legend has it."""

    def __str__(self):
        return f"{self.written} ({hex_of(self.colour)})" if self.written[0].isalpha() else hex_of(self.colour)


TOLERANCE = 48.0
"""How far from its legend's colour (distance in RGB, 0 to 255) a pixel may be: JPEG's noise, not another colour."""


def parse_legend(text: str) -> tuple[Entry, ...]:
    """Lines like `red: cat`, `#ff0000: cat`, `255, 0, 0: cat` or `red: cat @ 0.5` (strength).

    Names of colours are CSS's, in upper or lower case. ValueError names a bad line.
    """
    entries: dict[tuple[int, int, int], Entry] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            entry = _entry(line, f"legend, line {number}: ")
            if entry.colour in entries:
                phrase = entries[entry.colour].phrase
                raise ValueError(f"legend, line {number}: {entry} is {phrase!r} already")
            entries[entry.colour] = entry
    if not entries:
        raise ValueError("the legend is empty; write one line for each colour, such as `red: cat`")
    return tuple(entries.values())


LINE = re.compile(
    r"\s*(?P<colour>#[0-9a-fA-F]{6}|\d{1,3}\s*,\s*\d{1,3}\s*,\s*\d{1,3}|[a-zA-Z][a-zA-Z ]*?)\s*:"
    r"\s*(?P<phrase>[^\s@](?:[^@]*[^\s@])?)\s*(?:@\s*(?P<strength>\d*\.?\d+)\s*)?"
)


def _entry(line: str, where: str) -> Entry:
    match = LINE.fullmatch(line)
    written = match["colour"] if match else ""
    if written[:1].isalpha() and written.lower() not in ImageColor.colormap:
        near = get_close_matches(written.lower(), ImageColor.colormap, 1)
        hint = f"did you mean `{near[0]}`?" if near else "write a name of CSS, such as `red`, or `#ff0000`"
        raise ValueError(f"{where}{written!r} is not the name of a colour; {hint}")
    if match is None or (colour := _colour(written)) is None:
        raise ValueError(
            f"{where}{line.strip()!r} is not a colour and a phrase; write `red: cat`, `#ff0000: cat`, "
            "`255, 0, 0: cat`, or `red: cat @ 0.5` for half the strength"
        )
    return Entry(colour, match["phrase"], float(match["strength"] or 1.0), written)


def _colour(written: str) -> tuple[int, int, int] | None:
    if not written[0].isdigit():
        red, green, blue = ImageColor.getrgb(written)[:3]
    else:
        red, green, blue = map(int, written.split(","))
    return (red, green, blue) if max(red, green, blue) <= 255 else None


def hex_of(colour: Iterable[int]) -> str:
    return "#" + "".join(f"{value:02x}" for value in colour)


def segments(image: Tensor, legend: tuple[Entry, ...]) -> tuple[Tensor, ...]:
    """The place of each entry, (batch, height, width) of 0 and 1, in a map (batch, height, width, 3) of 0 to 1.

    Each pixel belongs to the nearest colour of the legend, or to none where that is not near. The place of a colour
    that is not there is empty.
    """
    pixels = _pixels(image)
    colours = torch.tensor([entry.colour for entry in legend], dtype=pixels.dtype, device=pixels.device)
    distance, nearest = torch.stack([_length(pixels - colour) for colour in colours]).min(0)
    nearest = torch.where(distance <= TOLERANCE, nearest, -1)
    return tuple((nearest == index).float() for index in range(len(legend)))


def absent(image: Tensor, legend: tuple[Entry, ...], places: tuple[Tensor, ...]) -> str:
    """Which colours of the legend the map of these places does not have, and which it has instead; or nothing."""
    missing: list[str] = []
    for entry, masks in zip(legend, places, strict=True):
        without = [str(number) for number, mask in enumerate(masks, 1) if not mask.any()]
        if without:
            of = "" if len(without) == len(masks) else f" in picture {', '.join(without)}"
            missing.append(f"{entry}{of}")
    if not missing:
        return ""
    pixels = _pixels(image).reshape(-1, 3)
    unique = pixels.unique(dim=0, return_counts=True)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    colours, counts = cast(tuple[Tensor, Tensor], unique)
    common = ", ".join(hex_of(map(int, colours[i])) for i in counts.argsort(descending=True)[:6])
    return f"the image has no {', '.join(missing)}, which paints nothing; its most frequent colours are {common}"


def _length(vectors: Tensor) -> Tensor:
    return cast(Tensor, vectors.norm(dim=-1))  # pyright: ignore[reportUnknownMemberType]: torch gives no type


def _pixels(image: Tensor) -> Tensor:
    return (image[..., :3].float() * 255.0).round()  # (batch, height, width, 3)
