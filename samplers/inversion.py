"""Inversion: the trajectory that deterministic sampling would follow to a given picture.

Sampling takes the step `x' = x + (sigma' - sigma) d(x, sigma)` with `d = (x - D) / sigma`. Going up, the latent `y`
before a step to `x` solves `y = x + (sigma_y - sigma_x) d(y, sigma_y)`. DDIM inversion (Dhariwal and Nichol 2021,
arXiv:2105.05233, appendix F; Mokady et al. 2023, arXiv:2211.09794) evaluates `d` at x instead, or where the steps below
lead on to (Uni-Inv: Jiao et al. 2025, arXiv:2504.13109); the refined form solves the equation (fixed point: Pan et al.
2023, arXiv:2309.04907; Garibi et al. 2024, arXiv:2403.14602).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import hypot, inf, log, sqrt
from typing import NamedTuple

import torch
from torch import Tensor

from .core import Denoiser, check_tensor, descending
from .fixed_point import Solver
from .noise_law import NoiseLaw

STIFF_LEVELS, STIFF_CALLS = 2, 8  # levels above the source that may take so many times the calls
PLAIN_SHARE = 0.5  # of the extrapolation: the steps of plain inversion have errors, which the whole of it amplifies


@dataclass(frozen=True)
class Inversion:
    """A finished inversion, immutable: `latents[i]` (batch, channels, ...) is at level `sigmas[i]`, descending.

    The latents are in model space, float32 or float64, on the CPU; `latents[-1]` is the source, `latents[0]` the noise.
    `latent_format` names the host's latent format, so that a trajectory of another model family is refused. `from_top`:
    sigmas[0] is the model's highest level, where the host starts from slightly more noise than elsewhere.
    ValueError unless levels, shapes, dtypes, values and law agree.
    """

    sigmas: tuple[float, ...]
    latents: tuple[Tensor, ...]
    law: NoiseLaw
    latent_format: str
    from_top: bool

    def __post_init__(self):
        sigmas, latents, law = _falling(self.sigmas), self.latents, self.law
        if len(latents) != len(sigmas):
            raise ValueError(f"{len(latents)} latents for {len(sigmas)} sigmas; one for each is needed")
        if not 0.0 < law.noise_scale < inf or law.flow and sigmas[0] > 1.0:
            raise ValueError(
                f"sigmas from {sigmas[0]:g} with noise_scale {law.noise_scale:g} belong to no {law.name} model; "
                "invert with the model that will sample"
            )
        if not self.latent_format.isidentifier() or len(self.latent_format) > 100:
            raise ValueError(f"the latent format is {self.latent_format[:100]!r}; a name such as 'SD15' is needed")
        shape = (None,) * max(latents[0].ndim, 2)
        for index, latent in enumerate(latents):
            check_tensor(f"latents[{index}]", latent, shape, torch.float64)
            shape = latent.shape


def _falling(sigmas: Sequence[float]) -> list[float]:
    levels = descending(sigmas)
    if len(set(levels)) < len(levels):
        raise ValueError("two sigmas are equal; an inversion needs each below the one before")
    return levels


class Level(NamedTuple):
    """What `invert` yields for each level, from the source up."""

    x: Tensor
    """The latent of level `sigma`."""
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

    refine 0 is plain DDIM inversion, one call a level: `d` is evaluated where the steps below lead on to. The first
    level has none below it, and is evaluated as diffusers does: at the latent below, in the model's own scale, at the
    level above. So a walk by calls of one step each is diffusers' inversion throughout.

    refine > 0 solves each step with at most so many calls (the first two levels, where the equation is stiff, 8 times
    as many), each sample by itself, until `residual * rate of convergence` is below a share of the tolerance (smaller
    where errors grow on the way down); then the accelerated iterate after it is kept. That aims at a largest error of
    the picture sampled back of about the tolerance, as a share of its std, and does not promise it.
    """
    if refine < 0 or tolerance <= 0.0:
        raise ValueError(f"refine is {refine} and tolerance {tolerance:g}; refine is at least 0, tolerance above 0")
    x = source
    steps: list[_Taken] = []
    for index, (below, sigma) in enumerate(pairwise(reversed(_falling(sigmas)))):
        if refine == 0:
            guess = _guess(x, below, sigma, steps, law, PLAIN_SHARE)
            denoised, direction = _direction(denoise, guess, sigma)
            level = Level(x + (sigma - below) * direction, denoised, sigma, None, 1)
        else:
            solver = _solver(index < STIFF_LEVELS, refine, tolerance, below, sigma, law)
            level = _solve(denoise, x, _guess(x, below, sigma, steps, law), below, sigma, law, solver)
        steps = [*steps[-1:], _Taken(below, x, sigma, level.x)]
        x = level.x
        yield level


def _direction(denoise: Denoiser, x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    denoised = denoise(x, sigma)
    return denoised, (x - denoised) / sigma


@dataclass(frozen=True)
class _Taken:
    """A step that was taken: from x at level `below` up to y at level `sigma`."""

    below: float
    x: Tensor
    sigma: float
    y: Tensor

    @property
    def slope(self) -> Tensor:
        return (self.y - self.x) / (self.sigma - self.below)


def _solver(stiff: bool, refine: int, tolerance: float, below: float, sigma: float, law: NoiseLaw) -> Solver:
    """How a level is solved: the first ones, where the equation is stiff, with more calls and a longer memory.

    What residual a level may leave, as a share of the tolerance, was fitted on the shapes model: on the way down an
    error grows about tenfold from the levels that decide the shape (a hundredfold in some pictures), and not at all
    from the stiff ones.
    """
    if stiff:
        # Exact where the denoiser keeps a fifth of a change of its input, which is near to what most directions keep.
        mixing = 1.0 / (1.0 - 0.8 * (sigma - below) / sigma)
        return Solver(refine * STIFF_CALLS, 0.25 * tolerance, memory=10, mixing=mixing, growth=4.0)
    alpha = law.alpha(sigma)
    ratio = law.std(sigma) / alpha if alpha > 0.0 else inf
    return Solver(refine, tolerance * max(0.01, 0.8 / (1.0 + 16.0 * ratio**2)), memory=2)


def _rescaled(x: Tensor, below: float, sigma: float, law: NoiseLaw) -> Tensor:
    """x as the model takes it at `below`, handed to it at `sigma`: it scales its input by 1/sqrt(1 + sigma^2)."""
    return x if law.flow else x * sqrt((1.0 + sigma**2) / (1.0 + below**2))


def _guess(x: Tensor, below: float, sigma: float, steps: list[_Taken], law: NoiseLaw, share: float = 1.0) -> Tensor:
    """Where the next latent may lie: along the last step's direction and its change, extrapolated in log sigma."""
    if not steps:
        return _rescaled(x, below, sigma, law)
    last, direction = steps[-1], steps[-1].slope
    if len(steps) > 1:
        before = steps[0]
        ahead = (log(sigma) - log(last.sigma)) / (log(last.sigma) - log(before.sigma))
        direction = direction + share * ahead * (direction - before.slope)
    return x + (sigma - below) * direction


def _solve(
    denoise: Denoiser, x: Tensor, guess: Tensor, below: float, sigma: float, law: NoiseLaw, solver: Solver
) -> Level:
    """The level whose step down from sigma lands on x, which is at level `below`."""
    denoised = guess

    def residual_of(y: Tensor) -> Tensor:
        nonlocal denoised
        denoised, direction = _direction(denoise, y, sigma)
        return x + (sigma - below) * direction - y

    solution = solver.solve(residual_of, guess, unit=hypot(law.alpha(sigma), law.std(sigma)))
    return Level(solution.y, denoised, sigma, solution.residual, solution.calls)


def largest_error(x: Tensor, expected: Tensor, law: NoiseLaw, sigma: float) -> float:
    """The largest difference, over the size `sqrt(alpha^2 + std^2)` of a latent at that level."""
    return float((x.float().cpu() - expected).abs().max()) / hypot(law.alpha(sigma), law.std(sigma))


def spread(latent: Tensor) -> float:
    """The latent's std, by which errors are measured; of one that is the same everywhere its size."""
    return float(latent.std()) or float(latent.abs().mean()) or 1.0
