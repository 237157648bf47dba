"""Inversion: the trajectory that deterministic sampling would follow to a given picture.

Sampling takes the step `x' = x + (sigma' - sigma) d(x, sigma)` with `d = (x - D) / sigma`. Going up, the latent `y`
before a step to `x` solves `y = x + (sigma_y - sigma_x) d(y, sigma_y)`. DDIM inversion (Dhariwal and Nichol 2021,
arXiv:2105.05233, appendix F; Mokady et al. 2023, arXiv:2211.09794) evaluates `d` at x instead; the refined form solves
the equation (fixed point: Pan et al. 2023, arXiv:2309.04907; Garibi et al. 2024, arXiv:2403.14602).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import hypot, inf, log, sqrt
from typing import NamedTuple

import torch
from torch import Tensor

from .core import Denoiser, descending
from .noise_law import NoiseLaw

STIFF_LEVELS, STIFF_CALLS = 2, 8  # levels above the source that may take so many times the calls
RIDGE = 1e-6  # above the rounding of products of float32, or differences that are all rounding would be extrapolated


@dataclass(frozen=True)
class Inversion:
    """A finished inversion, immutable: `latents[i]` (batch, channels, ...) is at level `sigmas[i]`, descending.

    The latents are in model space, float32, on the CPU; `latents[-1]` is the source, `latents[0]` the inverted noise.
    `latent_format` names the host's latent format, so that a trajectory of another model family is refused. `from_top`:
    sigmas[0] is the model's highest level, where the host starts from slightly more noise than elsewhere.
    """

    sigmas: tuple[float, ...]
    latents: tuple[Tensor, ...]
    law: NoiseLaw
    latent_format: str
    from_top: bool


class Level(NamedTuple):
    """What `invert` yields for each level, from the source up."""

    x: Tensor
    """The latent found, at level `sigma`."""
    denoised: Tensor
    """The last estimate of the clean latent."""
    sigma: float
    residual: Tensor | None
    """(batch,) of the last iterate evaluated: how far its step down lands from the latent below, the largest value,
    over `sqrt(alpha^2 + std^2)`. None for plain inversion, which evaluates none."""
    calls: int
    """Model calls this level took."""


def invert(
    denoise: Denoiser, source: Tensor, sigmas: Sequence[float], law: NoiseLaw, refine: int = 0, tolerance: float = 1e-4
) -> Iterator[Level]:
    """Walks the source, at the last of the sigmas (descending, as sampling will take them), up to the first.

    refine 0 is plain DDIM inversion, one call a level, with diffusers' choice of where to evaluate: the latent below
    (in the model's own scale) at the level above. Evaluating at the level below has a smaller median error, but loses
    some pictures altogether (20 steps on the shapes model: worst error 7 times as large), and cannot start at sigma 0.

    refine > 0 solves each step with at most so many calls (the first two levels, where the equation is stiff, 8 times
    as many), each sample by itself, until `residual * rate of convergence` is below a share of the tolerance (smaller
    where errors grow on the way down); then the accelerated iterate after it is kept. That aims at a largest error of
    the picture sampled back of about the tolerance, as a share of its std, and does not promise it.
    """
    if refine < 0 or tolerance <= 0.0:
        raise ValueError(f"refine is {refine} and tolerance {tolerance:g}; refine is at least 0, tolerance above 0")
    x, found = source, []
    for index, (below, sigma) in enumerate(pairwise(reversed(descending(sigmas)))):
        if refine == 0:
            denoised, direction = _direction(denoise, _rescaled(x, below, sigma, law), sigma)
            x = x + (sigma - below) * direction
            yield Level(x, denoised, sigma, None, 1)
            continue
        effort = _effort(index < STIFF_LEVELS, refine, tolerance, below, sigma, law)
        y, denoised, residual, calls = _solve(
            denoise, x, _guess(x, below, sigma, found, law), below, sigma, law, effort
        )
        found = [*found[-1:], (below, x, sigma, y)]
        x = y
        yield Level(x, denoised, sigma, residual, calls)


def _direction(denoise: Denoiser, x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    denoised = denoise(x, sigma)
    return denoised, (x - denoised) / sigma


class Effort(NamedTuple):
    """How a level is solved."""

    limit: int
    """The most model calls."""
    target: float
    """The residual to come below."""
    differences: int
    """How many the acceleration keeps."""
    mixing: float
    """The share of the residual that an accelerated step adds."""
    growth: float
    """How many times the best residual an iterate may have before it is dropped."""


def _effort(stiff: bool, refine: int, tolerance: float, below: float, sigma: float, law: NoiseLaw) -> Effort:
    """How a level is solved: the first ones, where the equation is stiff, with more calls and a longer memory.

    What residual a level may leave, as a share of the tolerance, was fitted on the shapes model: on the way down an
    error grows about tenfold from the levels that decide the shape (a hundredfold in some pictures), and not at all
    from the stiff ones.
    """
    if stiff:
        # a step exact where the denoiser keeps a fifth of a change of its input: it removes nearly all of most
        mixing = 1.0 / (1.0 - 0.8 * (sigma - below) / sigma)
        return Effort(refine * STIFF_CALLS, 0.25 * tolerance, 10, mixing, 4.0)
    alpha = law.alpha(sigma)
    ratio = law.std(sigma) / alpha if alpha > 0.0 else inf
    return Effort(refine, tolerance * max(0.01, 0.8 / (1.0 + 16.0 * ratio**2)), 2, 1.0, 1.0)


def _rescaled(x: Tensor, below: float, sigma: float, law: NoiseLaw) -> Tensor:
    """x as the model takes it at `below`, handed to it at `sigma`: it scales its input by 1/sqrt(1 + sigma^2)."""
    return x if law.flow else x * sqrt((1.0 + sigma**2) / (1.0 + below**2))


def _guess(x: Tensor, below: float, sigma: float, found: list[tuple], law: NoiseLaw) -> Tensor:
    """Where to start: along the direction extrapolated, in log sigma, from the last steps (sigma, x, sigma', y)."""
    if not found:
        return _rescaled(x, below, sigma, law)
    level, direction = found[-1][2], _slope(*found[-1])
    if len(found) > 1:
        before, earlier = found[0][2], _slope(*found[0])
        ahead = (log(sigma) - log(level)) / (log(level) - log(before))
        direction = direction + ahead * (direction - earlier)
    return x + (sigma - below) * direction


def _slope(below: float, x: Tensor, sigma: float, y: Tensor) -> Tensor:
    return (y - x) / (sigma - below)


def _solve(denoise, x, y, below, sigma, law, effort) -> tuple[Tensor, Tensor, Tensor, int]:
    """The y whose step from sigma down to `below` lands on x, from a guess: (y, denoised, residual, calls)."""
    size, calls = hypot(law.alpha(sigma), law.std(sigma)), 0
    memory = Acceleration(effort.differences, effort.mixing)
    done = torch.zeros(x.shape[0], dtype=torch.bool, device=x.device)
    damping = torch.ones_like(done, dtype=x.dtype)
    best, best_y, best_r, last = damping * inf, y, y, damping * 1e-30
    while calls < effort.limit and not done.all():
        calls += 1
        denoised, direction = _direction(denoise, y, sigma)
        r = x + (sigma - below) * direction - y
        residual = r.abs().flatten(1).amax(1) / size
        better, dropped = residual <= best, ~(residual <= effort.growth * best)  # or is not finite
        best_y, best_r = _chosen(better, y, best_y), _chosen(better, r, best_r)
        best = torch.where(better, residual, best)
        damping = torch.where(dropped, damping / 2, damping)
        # an iterate that made it much worse is dropped for a shorter step from the best one
        after = _chosen(dropped, best_y + _each(damping, y) * best_r, memory.next(y, r, dropped, damping))
        y = _chosen(done, y, after)
        del direction, r, after  # or they would outlive the next call
        done |= residual * (residual / last).clamp(max=1.0) < effort.target
        # where steps add more than the residual, how well the first one did, which added just that, tells nothing
        last = residual if calls > 1 or effort.mixing == 1.0 else last
    # out of calls while getting worse: the best one tried
    return _chosen(~better & ~done, best_y, y), denoised, best, calls


def _each(values: Tensor, like: Tensor) -> Tensor:
    """(batch,) in the shape that multiplies each sample of `like`."""
    return values.view(-1, *[1] * (like.ndim - 1)).to(like)


def _chosen(which: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """For each sample a where `which`, else b; without a copy where it is one of them for all."""
    if which.all():
        return a
    return torch.where(which.view(-1, *[1] * (a.ndim - 1)), a, b) if which.any() else b


class Acceleration:
    """Anderson acceleration of `y <- y + r`, each sample by itself, from the last few differences.

    What the differences do not tell is stepped by `mixing` times the residual (by less where damped).
    """

    def __init__(self, differences: int, mixing: float):
        self.last, self.differences, self.most, self.mixing = None, [], differences, mixing

    def next(self, y: Tensor, r: Tensor, restart: Tensor, damping: Tensor) -> Tensor:
        if self.last is not None:
            keep = _each(~restart, y)
            self.differences = [(keep * dy, keep * dr) for dy, dr in self.differences]
            self.differences.append((keep * (y - self.last[0]), keep * (r - self.last[1])))
        self.last = y, r
        if not self.differences:
            return y + r
        step = _each(1.0 + (self.mixing - 1.0) * damping, y)
        after = y + step * r
        for (dy, dr), weight in zip(self.differences, self._weights(r), strict=True):
            after = after - _each(weight, y) * (dy + step * dr)
        self.differences = self.differences[-self.most + 1 :]
        return after

    def _weights(self, r: Tensor) -> tuple[Tensor, ...]:
        """(batch,) for each difference: together they come nearest to the residual."""
        changes = torch.stack([dr.flatten(1) for _, dr in self.differences], 1)  # (batch, differences, values)
        gram = (changes @ changes.transpose(1, 2)).double().cpu()
        right = (changes @ r.flatten(1).unsqueeze(-1)).double().cpu()
        # in units of each difference's own length: they shrink by orders of magnitude on the way
        length = gram.diagonal(dim1=1, dim2=2).sqrt().clamp_min(1e-30).unsqueeze(-1)
        gram = gram / (length * length.transpose(1, 2)) + RIDGE * torch.eye(gram.shape[1], dtype=gram.dtype)
        return (torch.linalg.solve(gram, right / length) / length).squeeze(-1).unbind(1)


def largest_error(x: Tensor, expected: Tensor, law: NoiseLaw, sigma: float) -> float:
    """The largest difference, over the size `sqrt(alpha^2 + std^2)` of a latent at that level."""
    return float((x.float().cpu() - expected).abs().max()) / hypot(law.alpha(sigma), law.std(sigma))


def spread(latent: Tensor) -> float:
    """The latent's std, by which errors are measured; of one that is the same everywhere its size."""
    return float(latent.std()) or float(latent.abs().mean()) or 1.0
