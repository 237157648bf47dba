"""The estimate that agrees with a loss and stays close to the denoiser's: a proximal step, solved.

DiffPIR (Zhu et al. 2023, arXiv:2305.08995, eq. 13), ReSample (arXiv:2307.08123) and FlowDPS (arXiv:2503.08136) all put
`argmin_z L(z) + |z - D|^2 / (2 u^2)` in the place of the estimate D. With L a negative log-likelihood and u^2 the
variance of the picture given x it is the posterior's mode. One gradient step of length u^2 is `change_by_estimate`.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from .batch import chosen, per_sample

ValueAndGradient = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Each sample's loss, (batch,), and its gradient by the latent (batch, channels, ...)."""

TRIAL = 0.01
"""RMS of the first step, in units of u: short, since nothing is known of the curvature yet."""


def proximal_change(loss: ValueAndGradient, denoised: Tensor, spread: Tensor, iterations: int) -> Tensor:
    """`z - D` for the best z on the way to the minimum, which is never worse than D.

    `spread` is u, of a shape that broadcasts to D; where it is 0, z stays at D. The steps are those of Barzilai and
    Borwein (1988, doi:10.1093/imanum/8.1.141, eq. 5), for each sample by itself; the first is a short trial. From
    one that ends above D's value it goes back to the best so far, for a shorter one. Asks for the loss
    `iterations + 1` times, or once where all gradients are 0.
    """

    def objective(moved: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = loss(denoised + spread * moved)
        return value + 0.5 * dots(moved, moved).flatten(), spread * gradient + moved

    moved = torch.zeros_like(denoised)  # in units of u: the second term's curvature is 1
    start, slope = objective(moved)
    best, least, slope_there = moved, start, slope
    length = (TRIAL / rms(slope)).clamp(max=1.0)
    for _ in range(iterations):
        if not slope.any():
            break
        after = moved - length * slope
        value, slope_after = objective(after)
        next_length = step_length(after - moved, slope_after - slope)
        shorter = torch.maximum(torch.minimum(next_length, 0.5 * length), 0.1 * length)
        better = value < least
        best, slope_there = chosen(better, after, best), chosen(better, slope_after, slope_there)
        least = torch.where(better, value, least)
        # a step may rise, which is how these are fast; one that ends above the start has left what they know
        sane = value <= start
        moved, slope = chosen(sane, after, best), chosen(sane, slope_after, slope_there)
        length = torch.where(per_sample(sane, length), next_length, shorter)
    return spread * best


def step_length(moved: Tensor, turned: Tensor) -> Tensor:
    """Barzilai and Borwein's `<s, s> / <s, y>`, per sample: one over the curvature along the last step.

    At most 1: the objective's curvature is at least that of its second term, unless the loss is not convex there.
    """
    along = dots(moved, turned)
    return torch.where(along > 0.0, dots(moved, moved) / along.clamp(min=1e-30), 1.0).clamp(max=1.0)


def dots(a: Tensor, b: Tensor) -> Tensor:
    """Each sample's inner product, (batch, 1, ...)."""
    return (a * b).sum(tuple(range(1, a.ndim)), keepdim=True)


def rms(x: Tensor) -> Tensor:
    """Each sample's root mean square, (batch, 1, ...), never quite 0."""
    return x.square().mean(tuple(range(1, x.ndim)), keepdim=True).sqrt().clamp(min=1e-30)
