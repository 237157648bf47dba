"""What a layer of attention is to an edit, and which layers the papers mean, by architecture."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import Protocol

Grid = tuple[int, ...]


class Policy(Protocol):
    """Which layers of an architecture a method means."""

    def shares(self, site: "Site") -> bool:
        """Whether the picture's attention to itself, its layout, is shared here."""
        ...

    def blends(self, site: "Site") -> bool:
        """Whether the local blend looks for its words here."""
        ...

    def heats(self, site: "Site") -> bool:
        """Whether maps of words are made of this layer."""
        ...

    def blend_fits(self, latent: Grid) -> bool:
        """Whether a latent of this size leads to a layer that the local blend looks at."""
        ...


@dataclass(frozen=True)
class Site:
    """One attention layer in one model call: whose columns are what, and where its rows are in the picture."""

    layer: str
    """The module's name in the network."""
    words: slice | None
    """Which columns (keys) are the text; None where it is not attended to."""
    picture: slice | None
    """Which columns are the picture; None where it does not attend to itself."""
    grid: Grid
    """The places of the picture's rows, outermost axis first: `prod(grid)` rows, in reading order."""
    latent: Grid
    sigma: float
    policy: Policy

    @property
    def kind(self) -> str:
        """`self` (the picture to itself), `cross` (to the text) or `joint` (to both, in one softmax)."""
        if self.words is None:
            return "self"
        return "cross" if self.picture is None else "joint"

    @property
    def positions(self) -> int:
        return prod(self.grid)


def frames_of(grid: Grid) -> int:
    """How many frames a grid or latent of (frames, height, width) has; 1 of (height, width)."""
    return prod(grid[:-2])


def acts_in(kind: str, words: bool, layout: bool) -> bool:
    """Whether a layer of this kind is concerned by what happens to words, or to the layout."""
    return words and kind != "self" or layout and kind != "cross"


class UNetPolicy:
    """Of SD1.x, SD2.x and SDXL, by resolution: the papers' maps are 16 x 16, of 64 x 64 latents."""

    def shares(self, site: Site) -> bool:
        """Up to the paper's 16 x 16 (Hertz et al. 2022)."""
        return site.kind == "self" and coarse(site)

    def blends(self, site: Site) -> bool:
        """Cross-attention of the paper's 16 x 16, the middle left out."""
        return site.kind == "cross" and 0.5 < level(site) <= 2.0 and not site.layer.startswith("middle")

    def heats(self, site: Site) -> bool:
        """All cross-attention; `clearest` tells the resolutions apart."""
        return site.kind == "cross"

    def blend_fits(self, latent: Grid) -> bool:
        """Whether halving the latent's sides does."""
        height, width = latent
        levels = (-(-height // 2**k) * -(-width // 2**k) / paper_positions(latent) for k in range(8))
        return any(0.5 < each <= 2.0 for each in levels)


UNET = UNetPolicy()


@dataclass(frozen=True)
class DepthPolicy:
    """Of transformers, whose layers are all of one resolution: those that the family's record names."""

    heated: frozenset[str]

    def shares(self, site: Site) -> bool:
        """Never: two prompts do not go through a transformer together yet."""
        return False

    def blends(self, site: Site) -> bool:
        """Never, for the same reason."""
        return False

    def heats(self, site: Site) -> bool:
        """The blocks whose maps show words best."""
        return site.words is not None and site.layer in self.heated

    def blend_fits(self, latent: Grid) -> bool:
        """Never."""
        return False


def coarse(site: Site) -> bool:
    """Whether a layer is of the paper's 16 x 16 or coarser."""
    return level(site) <= 2.0


def level(site: Site) -> float:
    """How many times as many positions as the paper's maps."""
    return site.positions / paper_positions(site.latent)


def paper_positions(latent: Grid) -> float:
    """The positions of the paper's 16 x 16 maps, which for larger latents are (h/4) x (w/4)."""
    return max(256.0, prod(latent) / 16)


def clearest(grids: Iterable[Grid], latent: Grid) -> list[Grid]:
    """The resolutions up to four times the paper's 16 x 16, or the coarsest: finer maps are noise."""
    grids = list(grids)
    return [grid for grid in grids if prod(grid) <= 4.0 * paper_positions(latent)] or [min(grids)]
