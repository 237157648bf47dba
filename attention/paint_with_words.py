"""Paint-with-words (Balaji et al. 2022, eDiff-I, arXiv:2211.01324, section 4.3): places for the words of a prompt.

Where a region is painted, the logits of its phrase are raised before the softmax:

    softmax((Q K^T + A) / sqrt(d)),    A = w lambda log(1 + r) max(Q K^T)

with w the painted map (positions, tokens), lambda the weight and r the ratio of noise to picture, so that it acts while
the layout is made and fades as details come. Unlike the published code the maximum is each sample's own, and never
below 0, where it would turn the painting round.
"""

import re
from dataclasses import dataclass, replace
from difflib import get_close_matches
from math import log1p

import torch
import torch.nn.functional as F
from PIL import ImageColor
from torch import Tensor

from .core import Attention, Term
from .tokens import Prompt

LARGEST_RATIO = 14.6
"""A flow's noise-to-picture ratio is infinite at its start; this is Stable Diffusion's at its own."""


@dataclass(frozen=True)
class Region:
    """A place for a phrase. ValueError for a mask or a strength that cannot be meant."""

    mask: Tensor
    """(height, width), or (batch, height, width) for one of each picture; 0 to 1, over the whole picture."""
    phrase: str
    strength: float = 1.0
    """Factor on the weight, for this region."""

    def __post_init__(self):
        if self.mask.ndim not in (2, 3) or not self.mask.numel():
            raise ValueError(
                f"the mask of {self.phrase!r} has the shape {tuple(self.mask.shape)}; (height, width) or (batch, "
                "height, width) is needed"
            )
        low, high = float(self.mask.min()), float(self.mask.max())
        if not (low >= -1e-4 and high <= 1.0 + 1e-4):  # a NaN fails every comparison
            raise ValueError(f"the mask of {self.phrase!r} runs from {low:g} to {high:g}; it needs values from 0 to 1")
        check_phrase(self.phrase)


def check_phrase(phrase: str) -> None:
    """ValueError for a phrase without a character."""
    if not phrase.strip():
        raise ValueError("phrase is empty; give words of the prompt, such as `red circle`")


class Painting:
    """Regions on the tokens of one prompt; ValueError without any, and for a phrase that is not in it."""

    def __init__(self, regions: tuple[Region, ...], prompt: Prompt, weight: float):
        if not regions:
            raise ValueError("no regions; connect SteerRegion or SteerRegionsFromSegmentation")
        acting = any(region.strength > 0.0 and (region.mask > 0).any() for region in regions)
        self.regions, self.weight = regions, weight if acting else 0.0
        self._positions = [list(prompt.positions(region.phrase)) for region in regions]
        self._maps: dict[tuple[int, int], list[Tensor]] = {}

    def factor(self, sigma: float, flow: bool) -> float:
        """`lambda log(1 + r)` at a level; r is sigma, or sigma / (1 - sigma) in a flow model, there capped."""
        ratio = sigma if not flow else sigma / (1.0 - sigma) if sigma < 1.0 else LARGEST_RATIO
        return self.weight * log1p(min(ratio, LARGEST_RATIO) if flow else ratio)

    def map(self, grid: tuple[int, int], tokens: int, device) -> Tensor:
        """w: (batch or 1, positions, tokens). Of regions that share a token the strongest counts.

        There may be more tokens than the prompt's, after them: another prompt that was joined on.
        """
        if grid not in self._maps:
            self._maps[grid] = [resized(region.mask, grid) * region.strength for region in self.regions]
        places = self._maps[grid]
        w = torch.zeros(max(len(place) for place in places), grid[0] * grid[1], tokens, device=device)
        for place, positions in zip(places, self._positions, strict=True):
            w[..., positions] = torch.maximum(w[..., positions], place.to(device).unsqueeze(-1))
        return w


def resized(mask: Tensor, grid: tuple[int, int]) -> Tensor:
    """(batch or 1, positions) of a mask of any size: how much of each position is painted, from 0 to 1."""
    masks = mask.float().reshape(-1, 1, *mask.shape[-2:])
    return F.interpolate(masks, grid, mode="area").clamp(0.0, 1.0).flatten(1)


def painted(attention: Attention, w: Tensor, factor: float) -> Attention:
    """The attention with `w` (batch or 1, positions, tokens) painted on its logits."""
    return replace(attention, terms=tuple(_painted(term, w * factor, attention.heads) for term in attention.terms))


def _painted(term: Term, raised: Tensor, heads: int) -> Term:
    bias = raised * (largest(term.q, term.k, heads) * (term.q.shape[-1] // heads) ** -0.5)
    return replace(term, bias=bias if term.bias is None else term.bias + bias)


def largest(q: Tensor, k: Tensor, heads: int) -> Tensor:
    """`max(Q K^T)` of each sample over heads, positions and tokens, at least 0, float32: (batch, 1, 1)."""
    best = q.new_zeros(q.shape[0], dtype=torch.float32)
    for of_head in zip(q.chunk(heads, -1), k.chunk(heads, -1), strict=True):
        a, b = (x.float() for x in of_head)
        best = torch.maximum(best, (a @ b.transpose(1, 2)).amax((1, 2)))
    return best[:, None, None]


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
        return ImageColor.getrgb(written)
    values = tuple(int(value) for value in written.split(","))
    return values if max(values) <= 255 else None


def hex_of(colour) -> str:
    return "#" + "".join(f"{value:02x}" for value in colour)


def segments(image: Tensor, legend: tuple[Entry, ...]) -> tuple[Region, ...]:
    """The regions of a colour-coded map (batch, height, width, 3), 0 to 1.

    Each pixel belongs to the nearest colour of the legend, or to none where that is not near. The region of a colour
    that is not there is empty.
    """
    pixels = _pixels(image)
    colours = torch.tensor([entry.colour for entry in legend], dtype=pixels.dtype, device=pixels.device)
    distance, nearest = torch.stack([(pixels - colour).norm(dim=-1) for colour in colours]).min(0)
    nearest = torch.where(distance <= TOLERANCE, nearest, -1)
    return tuple(Region((nearest == i).float(), entry.phrase, entry.strength) for i, entry in enumerate(legend))


def absent(image: Tensor, legend: tuple[Entry, ...], regions: tuple[Region, ...]) -> str:
    """Which colours of the legend the map of these regions does not have, and which it has instead; or nothing."""
    missing = []
    for entry, region in zip(legend, regions, strict=True):
        without = [str(number) for number, place in enumerate(region.mask, 1) if not place.any()]
        if without:
            of = "" if len(without) == len(region.mask) else f" in picture {', '.join(without)}"
            missing.append(f"{entry}{of}")
    if not missing:
        return ""
    found, counts = _pixels(image).reshape(-1, 3).unique(dim=0, return_counts=True)
    common = ", ".join(hex_of(found[i].int().tolist()) for i in counts.argsort(descending=True)[:6])
    return f"the image has no {', '.join(missing)}, which paints nothing; its most frequent colours are {common}"


def _pixels(image: Tensor) -> Tensor:
    return (image[..., :3].float() * 255.0).round()  # (batch, height, width, 3)
