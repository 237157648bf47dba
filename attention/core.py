"""Attention that can be edited without its maps.

Every edit here is linear in the probabilities, `A' = sum_i softmax(q_i k_i^T / sqrt(d) + b_i) M_i`, and therefore in
the output: `A' v = sum_i softmax(...) (M_i v)`. So an edited layer costs one or two calls of any attention function on
changed values, and no map is ever made; only who looks at the maps (heatmaps, local blend) computes the softmax, in
float32, of as many heads at a time as little memory holds.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

Kernel = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""`kernel(q, k, v, bias)`: multi-head attention of (batch, positions, channels) and (batch, tokens, channels).

`bias` (batch, positions, tokens), or None, is added to the scaled logits of every head.
"""


AT_ONCE = 2**25
"""Bytes of the maps of several heads: one by one they are too little work for a GPU."""


@dataclass(frozen=True)
class Site:
    """One attention layer in one model call."""

    block: tuple[str, int, int]
    """Part of the UNet ("input", "middle", "output"), its number there, and the transformer within."""
    cross: bool
    grid: tuple[int, int]
    """Height and width of the positions: `grid[0] * grid[1]` rows of a map, in reading order."""
    latent: tuple[int, int]
    sigma: float

    @property
    def level(self) -> float:
        """How many times as many positions as the paper's maps."""
        return self.grid[0] * self.grid[1] / paper_positions(self.latent)


def paper_positions(latent: tuple[int, int]) -> float:
    """The positions of the paper's 16 x 16 maps, which for larger latents are (h/4) x (w/4)."""
    return max(256.0, latent[0] * latent[1] / 16)


def some_heads(q: Tensor, k: Tensor, heads: int) -> Iterator[tuple[Tensor, Tensor]]:
    """q and k, float32, of as many heads at a time as their maps may take memory: (batch, heads, positions, width)."""
    together = max(1, AT_ONCE // (4 * q.shape[0] * q.shape[1] * k.shape[1]))
    q, k = (x.unflatten(-1, (heads, -1)).transpose(1, 2).split(together, 1) for x in (q, k))
    yield from ((of_some.float(), keys.float()) for of_some, keys in zip(q, k, strict=True))


def nearest(sigmas: Sequence[float], sigma: float) -> float | None:
    """Which of these levels is this one, up to rounding; None where none is."""
    best = min(sigmas, key=lambda level: abs(level - sigma), default=None)
    return None if best is None or abs(best - sigma) > 1e-4 * max(sigma, 1e-3) else best


@dataclass(frozen=True)
class Term:
    """One softmax over tokens, and what becomes of its columns."""

    q: Tensor
    """(batch, positions, channels)"""
    k: Tensor
    """(batch, tokens, channels)"""
    mix: Tensor | None = None
    """(tokens, value tokens): column j of the edited map is `map @ mix[:, j]`; (tokens,) scales the columns."""
    bias: Tensor | None = None
    """(batch, positions, tokens) on the scaled logits, the same for every head."""


@dataclass(frozen=True)
class Attention:
    """The attention of some rows of one layer: a sum of terms over the same values."""

    terms: tuple[Term, ...]
    v: Tensor
    """(batch, value tokens, channels)"""
    heads: int
    kernel: Kernel

    def out(self) -> Tensor:
        """(batch, positions, channels)"""
        total = None
        for term in self.terms:
            bias = None if term.bias is None else term.bias.to(term.q.dtype)
            out = self.kernel(term.q, term.k, _mixed(term.mix, self.v), bias)
            total = out if total is None else total + out
        return total

    def probs(self) -> Tensor:
        """(batch, positions, value tokens), float32: the edited map, averaged over the heads."""
        total = 0.0
        for term in self.terms:
            mean = sum(maps.sum(1) for maps in self._maps(term)) / self.heads
            total = total + (mean if term.mix is None else mean @ as_matrix(term.mix).to(mean))
        return total

    def halves(self) -> tuple["Attention", "Attention"]:
        """The first and the second half of the batch."""

        def part(which: int) -> Attention:
            def half(x):
                return x if x is None else x.chunk(2)[which]

            terms = (replace(t, q=half(t.q), k=half(t.k), bias=half(t.bias)) for t in self.terms)
            return replace(self, terms=tuple(terms), v=half(self.v))

        return part(0), part(1)

    def _maps(self, term: Term):
        """(batch, heads, positions, tokens) of some heads at a time, float32."""
        for q, k in some_heads(term.q, term.k, self.heads):
            logits = (q * q.shape[-1] ** -0.5) @ k.transpose(2, 3)
            yield (logits if term.bias is None else logits + term.bias[:, None]).softmax(-1)


def as_matrix(mix: Tensor) -> Tensor:
    return mix if mix.ndim == 2 else mix.diag()


def _mixed(mix: Tensor | None, v: Tensor) -> Tensor:
    if mix is None:
        return v
    mix = mix.to(v.device, torch.float32)
    return (mix @ v.float() if mix.ndim == 2 else mix.unsqueeze(1) * v.float()).to(v.dtype)
