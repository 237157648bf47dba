"""Inpainting by a corrector: at each level the hole is moved by Langevin steps, then everything takes one step down.

Denoising and noising again with independent noise, as RePaint does, has down to half of the right variance at rest.
The moves here are the BAOAB splitting of Langevin dynamics (Leimkuhler and Matthews 2013, doi:10.1093/amrx/abs010) at a
full step, one model call each: for every Gaussian their variance at rest is exact, however large beside the noise.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import sqrt

from torch import Tensor

from .core import Denoiser, Step, descending
from .masks import composite, keep
from .noise_law import Noise, NoiseLaw

STEP = sqrt(2.0)
"""Of a move, in units of the level's noise. With an exact denoiser moves are stable below 2."""


def calls_at(sigma: float, law: NoiseLaw, inner: int) -> int:
    """Model calls at a level: 1 where noise outweighs the picture, `2 inner - 1` below, where more calls pay."""
    return 2 * inner - 1 if law.alpha(sigma) > law.std(sigma) else 1


def model_calls(sigmas: Sequence[float], law: NoiseLaw, inner: int) -> int:
    """How often `langevin` calls the model."""
    return sum(calls_at(sigma, law, inner) for sigma in sigmas[:-1])


def langevin(
    denoise: Denoiser,
    x: Tensor,
    sigmas: Sequence[float],
    law: NoiseLaw,
    known: Tensor,
    mask: Tensor,
    noise: Noise,
    known_noise: Noise,
    inner: int = 5,
    momentum: float = 0.8,
    moving: Denoiser | None = None,
) -> Iterator[Step]:
    """Inpaints `known` where mask is 1, starting from x at level sigmas[0], with about `inner` calls a level.

    x, known: (batch, channels, ...); mask: broadcastable to them. All calls of a level but the last move the hole,
    with fresh noise on what is kept; the last one steps down. What is kept is exact at the end. `noise` and
    `known_noise` are separate streams. At momentum 0 a move is `x = alpha D + std (n + n') / sqrt 2`, n the noise of
    the move before. `moving` is the estimate for moves, in place of `denoise`: it should be a posterior mean, which a
    guided answer is not. ValueError for inner below 1 or a momentum that is not from 0 to below 1.
    """
    if inner < 1 or not 0.0 <= momentum < 1.0:
        raise ValueError(f"inner is {inner} and momentum {momentum:g}; at least 1, and from 0 to below 1, are needed")
    sigmas = descending(sigmas)
    velocity, moving = noise(x), moving or denoise
    for sigma, next_sigma in pairwise(sigmas):
        alpha, std = law.alpha(sigma), law.std(sigma)
        for _ in range(calls_at(sigma, law, inner) - 1):
            x = keep(x, law.noised(known, sigma, known_noise(x)), mask)
            denoised = composite(moving(x, sigma), known, mask)
            velocity = velocity + STEP * (alpha * denoised - x) / std
            x = x + 0.5 * STEP * std * velocity
            velocity = momentum * velocity + sqrt(1.0 - momentum**2) * noise(x)
            x = x + 0.5 * STEP * std * velocity
            yield Step(x, denoised, sigma)
        x = keep(x, law.noised(known, sigma, known_noise(x)), mask)
        denoised = composite(denoise(x, sigma), known, mask)
        x = law.step(x, denoised, sigma, next_sigma)
        if next_sigma == sigmas[-1]:
            x = keep(x, law.noised(known, next_sigma, known_noise(x)), mask)
        yield Step(x, denoised, next_sigma)
