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
import torch.nn.functional as F
from torch import Tensor

Kernel = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""`kernel(q, k, v, bias)`: the attention, (batch, heads, rows, width), with a term's `bias` or None."""

AT_ONCE = 2**25
"""Bytes of the maps of several heads (one by one they are too little work for a GPU), or of a bias over all columns."""


def some_heads(q: Tensor, k: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """q and k, float32, of as many heads at a time as their maps may take memory."""
    k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)  # grouped queries: several heads may have the same keys
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
    """(batch or 1, 1, rows or 1, columns) on the scaled logits: the layer's own mask."""
    raised: Tensor | None = None
    """(batch or 1, 1, rows, words) on the scaled logits of the words: what edits add."""
    rest: float = 1.0
    """Where there is a mix, the factor on the columns that are not words."""


@dataclass(frozen=True)
class Attention:
    """The attention of some rows of one layer: a sum of terms over the same values."""

    terms: tuple[Term, ...]
    v: Tensor
    kernel: Kernel
    words: slice | None = None
    """Which of the values are words, which a mix is about; None for all, in a layer that attends to the text alone."""

    @property
    def tokens(self) -> int:
        """How many columns are words."""
        return self.v.shape[2] if self.words is None else self.words.stop - self.words.start

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
                bias, raised = (None if x is None else half(x) for x in (term.bias, term.raised))
                return replace(term, q=half(term.q), k=half(term.k), bias=bias, raised=raised)

            return replace(self, terms=tuple(map(of, self.terms)), v=half(self.v))

        return part(0), part(1)

    def _out(self, term: Term) -> Tensor:
        return self._attend(term, self._values(term))

    def _attend(self, term: Term, values: Tensor) -> Tensor:
        """The term's softmax on these values: of as many rows at a time as their bias over all columns may take."""
        if term.raised is None or self.words is None:
            bias = term.bias if term.raised is None else term.raised if term.bias is None else term.bias + term.raised
            return self.kernel(term.q, term.k, values, None if bias is None else bias.to(term.q.dtype))
        columns, words = term.k.shape[2], self._columns(term)
        some = max(1, AT_ONCE // (len(term.raised) * columns * term.q.element_size()))
        split = [_rows(x, some, term.q.shape[2]) for x in (term.q, term.raised, term.bias)]
        parts: list[Tensor] = []
        for q, raised, own in zip(*split, strict=True):
            bias = F.pad(raised.to(q.dtype), (words.start, columns - words.stop))
            parts.append(self.kernel(q, term.k, values, bias if own is None else bias + own.to(q.dtype)))
        return torch.cat(parts, 2)

    def _probs(self, term: Term) -> Tensor:
        if self.words is None:
            heads = (maps.sum(1) for maps in _maps(term))
            mean = reduce(torch.add, heads) / term.q.shape[1]
        else:
            mean = self._read(term)
        return mean if term.mix is None else mean @ as_matrix(term.mix).to(mean)

    def _read(self, term: Term) -> Tensor:
        """(batch, rows, words), float32: the mean over the heads.

        The words' softmax among themselves, times what of the whole softmax they have: that is read from one pass on
        values that are 1 at the words.
        """
        words, total, first = self._columns(term), torch.zeros(()), 0
        values = term.k.new_zeros(1, 1, term.k.shape[2], self.v.shape[3])
        values[:, :, words] = 1.0
        share = self._attend(term, values.expand(*self.v.shape[:2], -1, -1))[..., :1].float()
        bias = term.bias if term.bias is None or term.bias.shape[3] == 1 else term.bias[..., words]
        for maps in _maps(Term(term.q, term.k[:, :, words], bias=bias, raised=term.raised)):
            total = total + (maps * share[:, first : first + maps.shape[1]]).sum(1)
            first += maps.shape[1]
        return total / first

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
    """(batch, heads, rows, columns) of some heads at a time, float32; all columns are words."""
    for q, k in some_heads(term.q, term.k):
        logits = (q * q.shape[-1] ** -0.5) @ k.transpose(2, 3)
        for added in (term.bias, term.raised):
            logits = logits if added is None else logits + added
        yield logits.softmax(-1)


def _rows(x: Tensor | None, some: int, rows: int) -> Sequence[Tensor | None]:
    """Some rows at a time; what is one for all rows is so for each part."""
    return [x] * -(-rows // some) if x is None or x.shape[2] == 1 else torch.split(x, some, 2)


def as_matrix(mix: Tensor) -> Tensor:
    return mix if mix.ndim == 2 else mix.diag()


def _mixed(mix: Tensor, v: Tensor) -> Tensor:
    """(batch, heads, columns, width): one product for all heads."""
    mix, flat = mix.to(v.device, torch.float32), v.transpose(1, 2).flatten(2).float()
    flat = mix @ flat if mix.ndim == 2 else mix.unsqueeze(1) * flat
    return torch.unflatten(flat.to(v.dtype), 2, (v.shape[1], -1)).transpose(1, 2)
