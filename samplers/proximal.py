"""The estimate that agrees with a loss and stays close to the denoiser's: a proximal step, solved.

DiffPIR (Zhu et al. 2023, arXiv:2305.08995, eq. 13), ReSample (arXiv:2307.08123) and FlowDPS (arXiv:2503.08136) all put
`argmin_z L(z) + |z - D|^2 / (2 u^2)` in the place of the estimate D. With L a negative log-likelihood and u^2 the
variance of the picture given x it is the posterior's mode. One gradient step of length u^2 is `change_by_estimate`.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .batch import chosen, per_sample

ValueAndGradient = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Each sample's loss, (batch,), and its gradient by the latent (batch, channels, ...)."""

TRIAL = 0.2
"""RMS of the first step, in units of u, before anything is known of the curvature."""
MEMORY = 10
"""How many steps the curvature is known from."""


class Pair(NamedTuple):
    """A step, and what it changed of the gradient: the curvature along it, per sample."""

    moved: Tensor
    turned: Tensor


def proximal_change(loss: ValueAndGradient, denoised: Tensor, spread: Tensor, iterations: int) -> Tensor:
    """`z - D` for the best z on the way to the minimum, which is never worse than D.

    `spread` is u, of a shape that broadcasts to D; where it is 0, z stays at D. The steps are those of L-BFGS (Liu and
    Nocedal 1989, doi:10.1007/BF01589116), for each sample by itself; the first is a trial. A step that does not
    go down is not taken, but its curvature counts, and the next is shorter. Asks for the loss `iterations + 1` times,
    or once where all gradients are 0.
    """

    def objective(moved: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = loss(denoised + spread * moved)
        return value + 0.5 * dots(moved, moved).flatten(), spread * gradient + moved

    best = torch.zeros_like(denoised)  # in units of u: the second term's curvature is 1
    least, slope = objective(best)
    length, pairs = torch.ones_like(slope[:1]), list[Pair]()
    for _ in range(iterations):
        if not slope.any():
            break
        after = best + length * direction(slope, pairs)
        value, slope_after = objective(after)
        pairs = [*pairs[1 - MEMORY :], Pair(after - best, slope_after - slope)]
        better = value < least
        length = torch.where(per_sample(better, slope), 1.0, 0.5 * length)
        best, slope = chosen(better, after, best), chosen(better, slope_after, slope)
        least = torch.where(better, value, least)
    return spread * best


def direction(slope: Tensor, pairs: Sequence[Pair]) -> Tensor:
    """Downwards, by the curvature of these steps (Nocedal and Wright, Numerical Optimization, algorithm 7.4)."""
    out, weights = slope, list[tuple[Tensor, Tensor]]()
    for moved, turned in reversed(pairs):
        along = dots(moved, turned)
        share = torch.where(along > 0.0, 1.0 / along.clamp(min=1e-30), 0.0)  # a way that is not convex says nothing
        weights.append((share, share * dots(moved, out)))
        out = out - weights[-1][1] * turned
    out = out * scale(slope, pairs)
    for (moved, turned), (share, weight) in zip(pairs, reversed(weights), strict=True):
        out = out + (weight - share * dots(turned, out)) * moved
    return torch.where(dots(out, slope) > 0.0, -out, -scale(slope, ()) * slope)


def scale(slope: Tensor, pairs: Sequence[Pair]) -> Tensor:
    """One over the curvature along the last step; without one the length of a trial. At most 1.

    The objective's curvature is at least that of its second term, unless the loss is not convex there.
    """
    trial = TRIAL / rms(slope)
    if not pairs:
        return trial.clamp(max=1.0)
    moved, turned = pairs[-1]
    along = dots(moved, turned)
    return torch.where(along > 0.0, along / dots(turned, turned).clamp(min=1e-30), trial).clamp(max=1.0)


def dots(a: Tensor, b: Tensor) -> Tensor:
    """Each sample's inner product, (batch, 1, ...)."""
    return (a * b).sum(tuple(range(1, a.ndim)), keepdim=True)


def rms(x: Tensor) -> Tensor:
    """Each sample's root mean square, (batch, 1, ...), never quite 0."""
    return x.square().mean(tuple(range(1, x.ndim)), keepdim=True).sqrt().clamp(min=1e-30)
