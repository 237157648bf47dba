"""DDIM (Song, Meng and Ermon 2021, arXiv:2010.02502, eq. 12 and 16)."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

from torch import Tensor

from .core import Denoiser, Step, descending
from .noise_law import Noise, NoiseLaw


def ddim(
    denoise: Denoiser, x: Tensor, sigmas: Sequence[float], law: NoiseLaw, eta: float = 0.0, noise: Noise | None = None
) -> Iterator[Step]:
    """Steps x (at level sigmas[0]) down the sigmas: eta 0 is deterministic, eta 1 is the DDPM ancestral sampler.

    One model call a step. ValueError for eta outside 0..1 or eta above 0 without noise.
    """
    if not 0.0 <= eta <= 1.0:
        raise ValueError(f"eta is {eta:g}; it is a fraction from 0 (deterministic) to 1 (DDPM)")
    if eta > 0.0 and noise is None:
        raise ValueError(f"eta is {eta:g}, which draws noise at each step, but no noise was given")
    for sigma, next_sigma in pairwise(descending(sigmas)):
        denoised = denoise(x, sigma)
        x = law.step(x, denoised, sigma, next_sigma, eta, noise)
        yield Step(x, denoised, next_sigma)
