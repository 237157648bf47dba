"""Solving `y = g(y)` by Anderson acceleration, for a batch in which each sample is solved by itself.

Anderson 1965 (doi:10.1145/321296.321305), as Algorithm AA of Walker and Ni 2011 (doi:10.1137/10078356X) with a memory
of `memory` differences and mixing: with the residual `r = g(y) - y` and the differences `dY`, `dR` of the last
iterates, `w = argmin |r - dR w|` and the next iterate is `y + m r - (dY + m dR) w`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import cast

import torch
from torch import Tensor

from .batch import chosen, per_sample

RIDGE = 1e-6
"""Of the least squares: above the rounding of float32 products, below which differences say nothing."""


@dataclass(frozen=True)
class Solution:
    """What a solver ends with."""

    y: Tensor
    """(batch, ...) the iterate after the last one evaluated, or the best one evaluated where calls ran out."""
    residual: Tensor
    """(batch,) the smallest residual of the iterates evaluated."""
    calls: int


@dataclass(frozen=True)
class Solver:
    """How an equation is solved. A sample is done when `residual * rate of convergence` is below the target."""

    limit: int
    """The most evaluations."""
    target: float
    memory: int
    """How many differences are kept."""
    mixing: float = 1.0
    """The share of the residual that an accelerated step adds; the first step adds the whole."""
    growth: float = 1.0
    """How many times the best residual an iterate may have before it is dropped for a shorter step from the best."""

    def solve(self, residual_of: Callable[[Tensor], Tensor], y: Tensor, unit: float) -> Solution:
        """Solves from the guess y. `residual_of(y)` is `g(y) - y`; its size is its largest value over `unit`."""
        acceleration, calls = Acceleration(self.memory, self.mixing), 0
        done = torch.zeros(y.shape[0], dtype=torch.bool, device=y.device)
        better = ~done
        damping = torch.ones_like(done, dtype=y.dtype)
        best, best_y, best_r = torch.full_like(damping, inf), y, y
        last = torch.full_like(damping, 1e-30)
        while calls < self.limit and not done.all():
            calls += 1
            r = residual_of(y)
            residual = r.abs().flatten(1).amax(1) / unit
            better = residual <= best
            dropped = ~(residual <= self.growth * best)  # also where it is not a number
            best_y, best_r = chosen(better, y, best_y), chosen(better, r, best_r)
            best = torch.where(better, residual, best)
            damping = torch.where(dropped, damping / 2, damping)
            shorter = best_y + per_sample(damping, y) * best_r
            after = chosen(dropped, shorter, acceleration.next(y, r, dropped, damping))
            y = chosen(done, y, after)
            del r, shorter, after  # or their memory would be held during the next evaluation
            done |= residual * (residual / last).clamp(max=1.0) < self.target
            # The rate of convergence compares steps of one kind. The first adds the whole residual, so it counts only
            # where accelerated steps do so too (mixing 1).
            last = residual if calls > 1 or self.mixing == 1.0 else last
        return Solution(chosen(~better & ~done, best_y, y), best, calls)


class Acceleration:
    """The differences of the last iterates, and the next iterate from them."""

    def __init__(self, memory: int, mixing: float):
        self.memory, self.mixing = memory, mixing
        self.last: tuple[Tensor, Tensor] | None = None
        self.differences: list[tuple[Tensor, Tensor]] = []

    def next(self, y: Tensor, r: Tensor, restart: Tensor, damping: Tensor) -> Tensor:
        """The iterate after y with residual r; samples that `restart` (batch,) forget what was before.

        `damping` (batch,) shortens what `mixing` adds beyond the residual itself.
        """
        if self.last is not None:
            keep = per_sample(~restart, y).to(y)
            self.differences = [(keep * dy, keep * dr) for dy, dr in self.differences]
            self.differences.append((keep * (y - self.last[0]), keep * (r - self.last[1])))
        self.last = y, r
        if not self.differences:
            return y + r
        step = per_sample(1.0 + (self.mixing - 1.0) * damping, y)
        after = y + step * r
        for (dy, dr), weight in zip(self.differences, self._weights(r), strict=True):
            after = after - per_sample(weight, y).to(y) * (dy + step * dr)
        self.differences = self.differences[-self.memory + 1 :]
        return after

    def _weights(self, r: Tensor) -> tuple[Tensor, ...]:
        """w: (batch,) for each difference, which together come nearest to the residual."""
        changes = torch.stack([dr.flatten(1) for _, dr in self.differences], 1)  # (batch, differences, values)
        gram = (changes @ changes.transpose(1, 2)).double().cpu()
        right = (changes @ r.flatten(1).unsqueeze(-1)).double().cpu()
        # in units of each difference's own length: they shrink by orders of magnitude on the way
        length = gram.diagonal(dim1=1, dim2=2).sqrt().clamp_min(1e-30).unsqueeze(-1)
        gram = gram / (length * length.transpose(1, 2)) + RIDGE * torch.eye(gram.shape[1], dtype=gram.dtype)
        weights = cast(
            Tensor,
            torch.linalg.solve(gram, right / length),  # pyright: ignore[reportUnknownMemberType]: torch gives no type
        )
        return (weights / length).squeeze(-1).unbind(1)
