"""The attention of a finished run: averaged maps to look at, and queries and keys to put into another run.

A source's map in a later run needs no map either: its queries and keys give it again (see `core`), and are smaller.
Heatmaps average the cross-attention over model calls, layers and heads (Tang et al. 2023, arXiv:2210.04885, eq. 2-4).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor

from ..samplers.window import Window
from .core import Attention, Term, nearest
from .layers import Grid, Site, acts_in, clearest, frames_of


@dataclass(frozen=True)
class Recording:
    """Finished and immutable, on the CPU. The batch is that of the run, under its positive conditioning."""

    maps: Mapping[Grid, Tensor]
    """(batch, positions, tokens) float32 per resolution, averaged over calls, layers and heads."""
    terms: Mapping[tuple[float, str], Term]
    """q and k by sigma and layer, in the model's dtype, of the levels kept. Levels share a cross layer's k."""
    latent: Grid
    sigmas: tuple[float, ...]
    """The levels at which the model was called, descending."""
    tokens: int
    words: Window
    layout: Window
    """Of which levels the queries were kept: of cross-attention, and of self-attention."""
    texts: tuple[str, ...] = ()
    """The prompts of the run, where its conditioning tells them (as an edit's does)."""
    grainy: bool = False
    """Whether neighbouring places differ by chance, as in joint layers."""

    @property
    def batch(self) -> int:
        return next(iter(self.maps.values())).shape[0]

    @property
    def frames(self) -> int:
        return frames_of(self.latent)

    def term(self, site: Site) -> Term | None:
        """The recorded softmax of a layer at this level; None where none was kept."""
        sigma = nearest(self.sigmas, site.sigma)
        return None if sigma is None else self.terms.get((sigma, site.layer))


class Recorder:
    """Collects a recording while a run goes on."""

    def __init__(self, words: Window, layout: Window):
        self.words, self.layout = words, layout
        self._sums: dict[Grid, tuple[Tensor, int]] = {}
        self._kept: dict[tuple[float, str], Term] = {}
        self._last: dict[str, tuple[str, Term]] = {}
        """By layer: its kind, and what was kept of it last."""
        self._latent: Grid | None = None
        self._grainy = False

    def add(self, parts: list[Attention], site: Site) -> None:
        """One layer's attention in one model call: the rows of the batch, in parts that follow each other."""
        if len(parts) == 1 and self.keeps(site.kind, site.sigma):
            self._keep(parts[0].terms, site)
        if site.policy.heats(site):
            maps = [part.probs() for part in parts]
            tokens = max(part.shape[-1] for part in maps)  # of prompts of unequal length, edited together
            maps = torch.cat([F.pad(part, (0, tokens - part.shape[-1])) for part in maps])
            total, count = self._sums.get(site.grid, (0.0, 0))
            self._sums[site.grid] = (total + maps, count + 1)
            self._latent, self._grainy = site.latent, site.kind == "joint"

    def keeps(self, kind: str, sigma: float) -> bool:
        """Whether queries of layers of this kind are kept at this level."""
        return acts_in(kind, sigma in self.words, sigma in self.layout)

    def _keep(self, terms: tuple[Term, ...], site: Site) -> None:
        # what was edited or painted already is not one softmax of queries and keys
        if len(terms) == 1 and terms[0].mix is terms[0].bias is terms[0].raised is None:
            q, k = (x.to("cpu", copy=True) for x in (terms[0].q, terms[0].k))
            _, last = self._last.get(site.layer, (None, None))
            if site.kind == "cross" and last and torch.equal(k, last.k):
                k = last.k  # it is made of the text alone, which hardly ever changes within a run
            self._kept[site.sigma, site.layer] = term = Term(q, k)
            self._last[site.layer] = site.kind, term

    def nbytes(self) -> int:
        """What is kept so far takes, on the CPU when it is finished."""
        tensors = {id(x): x for term in self._kept.values() for x in (term.q, term.k)}
        return sum(x.nbytes for x in tensors.values()) + sum(total.nbytes for total, _ in self._sums.values())

    def ahead(self, sigmas: Iterable[float]) -> int:
        """What these levels will take, if they are like those before them."""
        total, sigmas = 0, list(sigmas)
        for kind, term in self._last.values():
            size = term.q.nbytes + (0 if kind == "cross" else term.k.nbytes)
            total += size * sum(self.keeps(kind, sigma) for sigma in sigmas)
        return total

    def finish(self, sigmas: tuple[float, ...], tokens: int) -> Recording:
        """The recording; ValueError where there was nothing to record."""
        if self._latent is None or not self._sums:
            raise ValueError(
                "the run never used its positive conditioning (a cfg of 0, or a timestep range that leaves it out), so "
                "there is no attention to keep"
            )
        maps = {grid: (total / count).cpu() for grid, (total, count) in self._sums.items()}
        return Recording(maps, self._kept, self._latent, sigmas, tokens, self.words, self.layout, grainy=self._grainy)


def heat(recording: Recording, positions: list[int], height: int, width: int) -> Tensor:
    """(batch x frames, height, width) from 0 to 1: how strongly each place attends to these tokens, per sample.

    The mean over resolutions, from the coarsest up to four times the paper's 16 x 16: finer maps are noise, and the
    coarsest know best where a thing is. Maps of joint layers are smoothed (Shin et al. 2025, arXiv:2508.07519).
    """

    def resized(grid: Grid) -> Tensor:
        maps = torch.unflatten(recording.maps[grid][..., positions].sum(-1), -1, grid)
        maps = maps.reshape(-1, 1, *grid[-2:])
        return F.interpolate(
            smoothed(maps) if recording.grainy else maps, (height, width), mode="bicubic", antialias=True
        )

    total = reduce(torch.add, map(resized, clearest(recording.maps, recording.latent))).squeeze(1)
    clips = torch.unflatten(total, 0, (recording.batch, -1))  # a word's heat is of all frames
    together = -(-recording.frames // clips.shape[1])  # frames of a patch
    clips = clips.repeat_interleave(together, 1)[:, : recording.frames] if together > 1 else clips
    low, high = clips.amin((1, 2, 3), keepdim=True), clips.amax((1, 2, 3), keepdim=True)
    spread = torch.maximum(high - low, 1e-3 * high).clamp_min(1e-12)  # rounding alone is no heat
    return ((clips - low) / spread).clamp(0.0, 1.0).flatten(0, 1)


def smoothed(maps: Tensor) -> Tensor:
    """(batch, 1, height, width) under a Gaussian of 7 x 7, its standard deviation 1 on the paper's 64 x 64 places.

    On fewer it is as much less, of the picture's size the same: in 8 x 8 places it would smooth things away.
    """
    deviation = min(1.0, (maps.shape[-2] * maps.shape[-1]) ** 0.5 / 64.0)
    line = torch.exp(-0.5 * (torch.arange(-3.0, 4.0) / deviation) ** 2)
    line = line / line.sum()
    return F.conv2d(F.pad(maps, (3, 3, 3, 3), "replicate"), (line[:, None] * line).to(maps)[None, None])
