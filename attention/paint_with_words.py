"""Paint-with-words (Balaji et al. 2022, eDiff-I, arXiv:2211.01324, section 4.3): places for the words of a prompt.

Where a region is painted, the logits of its phrase are raised before the softmax:

    softmax((Q K^T + A) / sqrt(d)),    A = w lambda log(1 + r) max(Q K^T)

with w the painted map (positions, tokens), lambda the weight and r the ratio of noise to picture, so that it acts while
the layout is made and fades as details come. In a joint layer A is JOINT times that. Unlike the published code the
maximum is each sample's own, and never below 0, where it would turn the painting round.
"""

from dataclasses import dataclass, replace
from math import log1p, prod

import torch
import torch.nn.functional as F
from torch import Tensor

from ..samplers.masks import for_latents
from .core import Attention, Term, some_heads
from .layers import Grid
from .tokens import Prompt

LARGEST_RATIO = 14.6
"""A flow's noise-to-picture ratio is infinite at its start; this is Stable Diffusion's at its own."""
JOINT = 0.75
"""Factor on the weight in joint layers, where words gain from the picture too: so the default serves both kinds."""


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
        self._maps: dict[tuple[Grid, int], list[Tensor]] = {}

    def factor(self, sigma: float, flow: bool) -> float:
        """`lambda log(1 + r)` at a level; r is sigma, or sigma / (1 - sigma) in a flow model, there capped."""
        ratio = sigma if not flow else sigma / (1.0 - sigma) if sigma < 1.0 else LARGEST_RATIO
        return self.weight * log1p(min(ratio, LARGEST_RATIO) if flow else ratio)

    def map(self, grid: Grid, tokens: int, device: torch.device, batch: int = 1, frames: int = 0) -> Tensor:
        """w: (batch or 1, 1, positions, tokens). Of regions that share a token the strongest counts.

        `frames` is how many the latent has, where a place may be of several.

        There may be more tokens than the prompt's, after them: another prompt that was joined on.
        """
        if (grid, batch) not in self._maps:
            self._maps[grid, batch] = [
                resized(region.mask, grid, batch, frames) * region.strength for region in self.regions
            ]
        places = self._maps[grid, batch]
        w = torch.zeros(max(len(place) for place in places), prod(grid), tokens, device=device)
        for place, positions in zip(places, self._positions, strict=True):
            w[..., positions] = torch.maximum(w[..., positions], place.to(device).unsqueeze(-1))
        return w.unsqueeze(1)


def resized(mask: Tensor, grid: Grid, batch: int = 1, frames: int = 0) -> Tensor:
    """(batch or 1, positions) of a mask of any size: how much of each position is painted, from 0 to 1.

    Of clips there may be one mask for all frames or one for each, as noise masks have them; where a position is of
    several of the clip's frames, their mean counts.
    """
    masks = mask.float()
    if len(grid) == 3:
        masks = for_latents(masks, (batch, 1, max(frames, grid[0]), *grid[1:]))
        together = -(-frames // grid[0])
        if together > 1 and masks.shape[2] > 1:
            last = masks[:, :, -1:].expand(-1, -1, together * grid[0] - frames, -1, -1)
            masks = torch.unflatten(torch.cat([masks, last], 2), 2, (grid[0], together)).mean(3)
    places = F.interpolate(masks.reshape(-1, 1, *mask.shape[-2:]), grid[-2:], mode="area").clamp(0.0, 1.0)
    if len(grid) == 2:
        return places.flatten(1)
    return places.reshape(len(masks), -1, *grid[1:]).expand(-1, grid[0], -1, -1).flatten(1)


def painted(attention: Attention, w: Tensor, factor: float) -> Attention:
    """The attention with `w` (batch or 1, 1, positions, words) painted on the logits of its words."""
    words = attention.words or slice(None)
    factor = factor if attention.words is None else JOINT * factor
    return replace(attention, terms=tuple(_painted(term, w * factor, words) for term in attention.terms))


def _painted(term: Term, raised: Tensor, words: slice) -> Term:
    raised = raised * (largest(term.q, term.k[:, :, words]) * term.q.shape[-1] ** -0.5)
    return replace(term, raised=raised if term.raised is None else term.raised + raised)


def largest(q: Tensor, k: Tensor) -> Tensor:
    """`max(Q K^T)` of each sample over heads, positions and tokens, at least 0, float32: (batch, 1, 1, 1)."""
    best = [(some @ keys.transpose(2, 3)).amax((1, 2, 3)) for some, keys in some_heads(q, k)]
    return torch.stack(best).amax(0).clamp_min(0.0)[:, None, None, None]
