"""Attention that can be edited without its maps.

Every edit here is linear in the probabilities, `A' = sum_i softmax(q_i k_i^T / sqrt(d) + b_i) M_i`, and therefore in
the output: `A' v = sum_i softmax(...) (M_i v)`. So an edited layer costs one or two calls of any attention function on
changed values, and no map is ever made; only who looks at the maps (heatmaps, local blend) computes the softmax, in
float32, of as many heads at a time as little memory holds.

Tensors are heads first: q (batch, heads, rows, width), k and v (batch, heads, columns, width).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce

import torch
from torch import Tensor

Kernel = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""`kernel(q, k, v, bias)`: the attention, (batch, heads, rows, width), with a term's `bias` or None."""

AT_ONCE = 2**25
"""Bytes of the maps of several heads: one by one they are too little work for a GPU."""


def some_heads(q: Tensor, k: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """q and k, float32, of as many heads at a time as their maps may take memory."""
    together = max(1, AT_ONCE // (4 * q.shape[0] * q.shape[2] * k.shape[2]))
    for some, keys in zip(torch.split(q, together, 1), torch.split(k, together, 1), strict=True):
        yield some.float(), keys.float()


def nearest(sigmas: Sequence[float], sigma: float) -> float | None:
    """Which of these levels is this one, up to rounding; None where none is."""
    best = min(sigmas, key=lambda level: abs(level - sigma), default=None)
    return None if best is None or abs(best - sigma) > 1e-4 * max(sigma, 1e-3) else best


@dataclass(frozen=True)
class Term:
    """One softmax over columns, and what becomes of them."""

    q: Tensor
    k: Tensor
    mix: Tensor | None = None
    """(words, value words): column j of the edited map is `map @ mix[:, j]`; (words,) scales the columns."""
    bias: Tensor | None = None
    """(batch or 1, 1, rows or 1, columns) on the scaled logits: the layer's own mask, and what edits add to it."""
    rest: float = 1.0
    """Where there is a mix, the factor on the columns that are not words."""


@dataclass(frozen=True)
class Attention:
    """The attention of some rows of one layer: a sum of terms over the same values."""

    terms: tuple[Term, ...]
    v: Tensor
    kernel: Kernel
    words: slice | None = None
    """Which of the values are words, which a mix is about; None for all."""

    def out(self) -> Tensor:
        """(batch, heads, rows, width)"""
        return reduce(torch.add, map(self._out, self.terms))

    def probs(self) -> Tensor:
        """(batch, rows, words), float32: the words' columns of the edited map, averaged over the heads."""
        return reduce(torch.add, map(self._probs, self.terms))

    def halves(self) -> tuple["Attention", "Attention"]:
        """The first and the second half of the batch."""

        def part(which: int) -> Attention:
            def half(x: Tensor) -> Tensor:
                return x if len(x) == 1 else x.chunk(2)[which]  # a bias may be one for all

            def of(term: Term) -> Term:
                bias = None if term.bias is None else half(term.bias)
                return replace(term, q=half(term.q), k=half(term.k), bias=bias)

            return replace(self, terms=tuple(map(of, self.terms)), v=half(self.v))

        return part(0), part(1)

    def _out(self, term: Term) -> Tensor:
        bias = None if term.bias is None else term.bias.to(term.q.dtype)
        return self.kernel(term.q, term.k, self._values(term), bias)

    def _probs(self, term: Term) -> Tensor:
        heads = (maps[..., self._columns(term)].sum(1) for maps in _maps(term))
        mean = reduce(torch.add, heads) / term.q.shape[1]
        return mean if term.mix is None else mean @ as_matrix(term.mix).to(mean)

    def _values(self, term: Term) -> Tensor:
        """The values as the term's own columns have them."""
        if term.mix is None:
            return self.v
        if self.words is None:
            return _mixed(term.mix, self.v)
        before, after = self.v[:, :, : self.words.start], self.v[:, :, self.words.stop :]
        return torch.cat([term.rest * before, _mixed(term.mix, self.v[:, :, self.words]), term.rest * after], 2)

    def _columns(self, term: Term) -> slice:
        """Which of the term's own columns are words: another prompt may have more or fewer."""
        if self.words is None:
            return slice(None)
        return slice(self.words.start, self.words.stop + term.k.shape[2] - self.v.shape[2])


def _maps(term: Term) -> Iterator[Tensor]:
    """(batch, heads, rows, columns) of some heads at a time, float32."""
    for q, k in some_heads(term.q, term.k):
        logits = (q * q.shape[-1] ** -0.5) @ k.transpose(2, 3)
        yield (logits if term.bias is None else logits + term.bias).softmax(-1)


def as_matrix(mix: Tensor) -> Tensor:
    return mix if mix.ndim == 2 else mix.diag()


def _mixed(mix: Tensor, v: Tensor) -> Tensor:
    """(batch, heads, columns, width): one product for all heads."""
    mix, flat = mix.to(v.device, torch.float32), v.transpose(1, 2).flatten(2).float()
    flat = mix @ flat if mix.ndim == 2 else mix.unsqueeze(1) * flat
    return torch.unflatten(flat.to(v.dtype), 2, (v.shape[1], -1)).transpose(1, 2)
