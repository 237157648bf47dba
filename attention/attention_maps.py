"""The attention of a finished run: averaged maps to look at, and queries and keys to put into another run.

A source's map in a later run needs no map either: its queries and keys give it again (see `core`), and are smaller.
Heatmaps average the cross-attention over model calls, layers and heads (Tang et al. 2023, arXiv:2210.04885, eq. 2-4).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..samplers.window import Window
from .core import Attention, Site, Term, nearest, paper_positions

Grid = tuple[int, int]
Layer = tuple[tuple[str, int, int], bool]


@dataclass(frozen=True)
class Recording:
    """Finished and immutable, on the CPU. The batch is that of the run, under its positive conditioning."""

    maps: Mapping[Grid, Tensor]
    """(batch, height * width, tokens) float32 per resolution, averaged over calls, layers and heads."""
    queries: Mapping[tuple[float, Layer], tuple[Tensor, Tensor]]
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

    def term(self, site: Site) -> Term | None:
        """The recorded softmax of a layer at this level; None where none was kept."""
        sigma = nearest(self.sigmas, site.sigma)
        found = None if sigma is None else self.queries.get((sigma, (site.block, site.cross)))
        return None if found is None else Term(*found)


class Recorder:
    """Collects a recording while a run goes on."""

    def __init__(self, words: Window, layout: Window):
        self.words, self.layout = words, layout
        self._sums: dict[Grid, tuple[Tensor, int]] = {}
        self._queries: dict[tuple[float, Layer], tuple[Tensor, Tensor]] = {}
        self._last: dict[Layer, tuple[Tensor, Tensor]] = {}
        self._latent: Grid | None = None

    def add(self, parts: list[Attention], site: Site) -> None:
        """One layer's attention in one model call: the rows of the batch, in parts that follow each other."""
        if len(parts) == 1 and site.sigma in self._window(site.cross):
            self._keep(parts[0].terms, site)
        if site.cross:
            maps = [part.probs() for part in parts]
            tokens = max(part.shape[-1] for part in maps)  # of prompts of unequal length, edited together
            maps = torch.cat([F.pad(part, (0, tokens - part.shape[-1])) for part in maps])
            total, count = self._sums.get(site.grid, (0.0, 0))
            self._sums[site.grid] = (total + maps, count + 1)
            self._latent = site.latent

    def _keep(self, terms: tuple[Term, ...], site: Site) -> None:
        # what was edited or painted already is not one softmax of queries and keys
        if len(terms) == 1 and terms[0].mix is None and terms[0].bias is None:
            layer = site.block, site.cross
            q, k = (x.to("cpu", copy=True) for x in (terms[0].q, terms[0].k))
            if site.cross and layer in self._last and torch.equal(k, self._last[layer][1]):
                k = self._last[layer][1]  # it is made of the text alone, which hardly ever changes within a run
            self._last[layer] = self._queries[site.sigma, layer] = q, k

    def _window(self, cross: bool) -> Window:
        return self.words if cross else self.layout

    def nbytes(self) -> int:
        """What is kept so far takes, on the CPU when it is finished."""
        tensors = {id(x): x for pair in self._queries.values() for x in pair}
        return sum(x.nbytes for x in tensors.values()) + sum(total.nbytes for total, _ in self._sums.values())

    def ahead(self, sigmas: Iterable[float]) -> int:
        """What these levels will take, if they are like those before them."""
        total, sigmas = 0, list(sigmas)
        for (_, cross), (q, k) in self._last.items():
            total += (q.nbytes + (0 if cross else k.nbytes)) * sum(sigma in self._window(cross) for sigma in sigmas)
        return total

    def finish(self, sigmas: tuple[float, ...], tokens: int) -> Recording:
        """The recording; ValueError where there was nothing to record."""
        if not self._sums:
            raise ValueError(
                "the run never used its positive conditioning (a cfg of 0, or a timestep range that leaves it out), so "
                "there is no attention to keep"
            )
        maps = {grid: (total / count).cpu() for grid, (total, count) in self._sums.items()}
        return Recording(maps, self._queries, self._latent, sigmas, tokens, self.words, self.layout)


def heat(recording: Recording, positions: list[int], height: int, width: int) -> Tensor:
    """(batch, height, width) from 0 to 1: how strongly each place attends to these tokens, per sample.

    The mean over resolutions, from the coarsest up to four times the paper's 16 x 16: finer maps are noise, and the
    coarsest know best where a thing is.
    """
    finest = 4.0 * paper_positions(recording.latent)
    grids = [grid for grid in recording.maps if grid[0] * grid[1] <= finest] or [min(recording.maps)]
    total = 0.0
    for grid in grids:
        maps = recording.maps[grid][..., positions].sum(-1).unflatten(-1, grid).unsqueeze(1)
        total = total + F.interpolate(maps, (height, width), mode="bicubic", antialias=True)
    total = total.squeeze(1)
    low, high = total.amin((-2, -1), keepdim=True), total.amax((-2, -1), keepdim=True)
    spread = torch.maximum(high - low, 1e-3 * high).clamp_min(1e-12)  # rounding alone is no heat
    return ((total - low) / spread).clamp(0.0, 1.0)
