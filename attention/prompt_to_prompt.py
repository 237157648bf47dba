"""Prompt-to-Prompt (Hertz et al. 2022, arXiv:2208.01626) and its local blend.

The source prompt's attention is put into the target's, token by token: with `M` the mapper, `kept` which target tokens
have a counterpart, `c` the equalizer and `w` which tokens' windows are open,

    A' = w c (kept A_source M + (1 - kept) A_target) + (1 - w) A_target

per column, nothing renormalised. That is linear in both maps: see `core`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..samplers.window import Window
from .core import Attention, Term, as_matrix
from .layers import Grid, acts_in
from .tokens import Prompt


@dataclass(frozen=True)
class LocalBlend:
    """Where the edit may show: where the maps of these tokens, at best 1, exceed the threshold in either prompt."""

    source_tokens: tuple[int, ...]
    target_tokens: tuple[int, ...]
    threshold: float
    start: float
    """Share of the run before the blending begins."""


@dataclass(frozen=True)
class Edit:
    """What changes from one prompt to another. `mapper` (source, target tokens), `kept` and `equalizer` (target,)."""

    source: Prompt
    target: Prompt
    mapper: Tensor
    kept: Tensor
    equalizer: Tensor
    windows: tuple[tuple[int, tuple[float, float]], ...] = ()
    """(target position, its own window in shares of the run) for the tokens that have one."""
    blend: LocalBlend | None = None


Mixed = tuple[Tensor | None, Tensor | None]
"""What becomes of the columns of the source's map and the target's own: (source, target), (target,); None is 0."""


class Timing:
    """When an edit acts: `words`, a window for each token of the target, `layout` for self-attention, and `blending`.

    `sigma_of` is the noise level at a share of the run, 0 the beginning.
    """

    def __init__(self, edit: Edit, sigma_of: Callable[[float], float], cross_end: float, self_end: float):
        self.edit = edit
        self._last: tuple[tuple[float, torch.device], Mixed] | None = None
        own = dict(edit.windows)
        shares = [own.get(position, (0.0, cross_end)) for position in range(edit.target.length)]
        self.words = [Window.until(sigma_of(end), sigma_of(start)) for start, end in shares]
        self._unlike = set(self.words)  # few, and asked at every layer
        self.layout = Window.until(sigma_of(self_end))
        self.blending = Window(sigma_of(edit.blend.start) if edit.blend else 0.0)

    def gates(self, sigma: float) -> Tensor:
        """(target,) 1 where the token's window is open."""
        return torch.tensor([float(sigma in window) for window in self.words])

    def acts(self, kind: str, sigma: float) -> bool:
        return acts_in(kind, any(sigma in window for window in self._unlike), sigma in self.layout)

    def mixed(self, sigma: float, device: torch.device) -> Mixed:
        """`mixes` at a level, on the device; kept for the level's other layers."""
        if self._last is None or self._last[0] != (sigma, device):
            source, target = (x if x is None else x.to(device) for x in mixes(self.edit, self.gates(sigma)))
            self._last = (sigma, device), (source, target)
        return self._last[1]


def mixes(edit: Edit, gates: Tensor) -> Mixed:
    """The columns while these tokens' windows are open: `gates` (target,), 1 or 0."""
    source = edit.mapper * (gates * edit.equalizer * edit.kept)
    target = gates * edit.equalizer * (1.0 - edit.kept) + (1.0 - gates)
    return (source if source.any() else None), (target if target.any() else None)


def edited(source: tuple[Term, ...], target: Attention, edit: Edit, mixed: Mixed) -> Attention:
    """The target's cross-attention with the source's maps in it; contexts that were repeated are folded back.

    A repeated context divides every probability over its copies: its first copy alone has the whole.
    """
    of_source, of_target = mixed
    terms: list[Term] = []
    for term in source:
        if of_source is not None:
            terms.append(_first(term, edit.source.length, of_source))
    for term in target.terms:
        if of_target is not None:
            terms.append(_first(term, edit.target.length, of_target))
    return replace(target, terms=tuple(terms), v=target.v[:, :, : edit.target.length])


def _first(term: Term, tokens: int, mix: Tensor) -> Term:
    mix = mix if term.mix is None else as_matrix(term.mix) @ as_matrix(mix)
    bias, raised = (None if added is None else added[..., :tokens] for added in (term.bias, term.raised))
    return replace(term, k=term.k[:, :, :tokens], mix=mix, bias=bias, raised=raised)


def shared_layout(source: Term, target: Attention) -> Attention:
    """The target's self-attention with the source's map, which its queries and keys give (section 3.2)."""
    return replace(target, terms=(source,))


NOTHING_TO_BLEND = (
    "the local blend found no cross-attention of about 16 x 16 positions (or a quarter of the latent's side) in this "
    "model; use the edit without it"
)


class BlendMask:
    """The mask of a local blend: maps added up over layers and steps as they come, per sample."""

    def __init__(self, blend: LocalBlend):
        self.blend = blend
        self._sums: Tensor | None = None
        self._grid: Grid = ()

    def add(self, source: Tensor, target: Tensor, grid: Grid) -> None:
        """Maps (batch, positions, tokens) of one layer, of the source and of the (edited) target."""
        pairs = (source, self.blend.source_tokens), (target, self.blend.target_tokens)
        sums = torch.stack([maps[..., list(tokens)].sum(-1) for maps, tokens in pairs])  # (2, batch, positions)
        self._sums, self._grid = (sums, grid) if self._sums is None else (self._sums + sums, grid)

    def mask(self, height: int, width: int) -> Tensor:
        """(batch, 1, height, width) of 0 and 1. ValueError where no layer of that resolution was met."""
        if self._sums is None:
            raise ValueError(NOTHING_TO_BLEND)
        maps = F.max_pool2d(torch.unflatten(self._sums, -1, self._grid), 3, stride=1, padding=1)  # (2, batch, h, w)
        maps = maps / maps.amax((-2, -1), keepdim=True).clamp_min(1e-12)
        return F.interpolate((maps > self.blend.threshold).any(0).float().unsqueeze(1), (height, width))


class BlendedTarget:
    """The target of a local blend (section 4.1): outside the mask it is the source, inside what was sampled.

    The paper blends the target's latent after each step. Another sampler keeps its own latent, which cannot be changed,
    but where it would be is known: outside, two solutions of the sampling ODE under the same estimates drift apart in
    proportion to sigma. So what each blend takes off is kept as a share of sigma, and taken off at the levels below.
    Latents are (batch, channels, height, width); until the first mask the target is left alone.
    """

    def __init__(self):
        self.mask: Tensor | None = None
        """(batch, 1, height, width) of 0 and 1, set by who watches the attention."""
        self._drift: Tensor | float = 0.0

    def moved(self, source: Tensor, target: Tensor, sigma: float) -> Tensor:
        """The target's latent at a level where it would be, had it been blended after each step."""
        if self.mask is None:
            return target
        moved = target - sigma * self._drift
        blended = self.blend(source, moved)
        if sigma > 0.0:
            self._drift = self._drift + (moved - blended) / sigma
        return blended

    def blend(self, source: Tensor, target: Tensor) -> Tensor:
        """Latents or estimates of the two, at one level."""
        return target if self.mask is None else source + self.mask.to(source) * (target - source)
