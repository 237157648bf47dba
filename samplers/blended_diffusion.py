"""Blended Diffusion in latent space (Avrahami et al. 2022, arXiv:2111.14818 Algorithm 2; 2023, arXiv:2206.02779)."""

from collections.abc import Sequence

from torch import Tensor

from .core import Denoiser, descending
from .masks import composite, dilate, keep
from .noise_law import Noise, NoiseLaw


def shrinking_masks(mask: Tensor, dilation: int) -> list[Tensor]:
    """The mask grown by `dilation`, ..., 2, 1 latent pixels, then as it is (arXiv:2206.02779, section 3.3).

    A thin mask vanishes in the noise of the first steps; a grown one gives the prompt room to start in.
    """
    if dilation < 0:
        raise ValueError(f"dilation is {dilation}; it counts latent pixels and cannot be negative")
    return [dilate(mask, radius) for radius in range(dilation, 0, -1)] + [mask]


def mask_stage(sigma: float, sigmas: Sequence[float], stages: int) -> int:
    """Which of `stages` masks applies at a model call at sigma; the last step always has the last mask.

    By sigma, not by counting calls: a sampler may call the model several times a step, or between two sigmas.
    """
    steps = len(sigmas) - 1
    step = sum(level >= sigma * (1.0 - 1e-5) for level in sigmas[:-1]) - 1
    if step >= steps - 1:
        return stages - 1
    return max(step, 0) * stages // steps


class Blend:
    """The blending of one run: what any sampler calls in place of its denoiser.

    Generates where mask is 1; elsewhere each call sees `known` at that level with fresh noise, and the estimate is
    `known` (so that multistep samplers remember the source). When the sampler is done, `finish` puts in the source.
    """

    def __init__(
        self, sigmas: Sequence[float], law: NoiseLaw, known: Tensor, mask: Tensor, noise: Noise, dilation: int = 0
    ):
        self.sigmas, self.law, self.known, self.noise = descending(sigmas), law, known, noise
        self.masks = shrinking_masks(mask, dilation)

    def denoise(self, denoise: Denoiser, x: Tensor, sigma: float) -> Tensor:
        """`denoise(x, sigma)` of the blended x; what was generated is kept inside the mask of this stage."""
        mask = self.masks[mask_stage(sigma, self.sigmas, len(self.masks))]
        return composite(denoise(self._blended(x, sigma, mask), sigma), self.known, mask)

    def finish(self, x: Tensor) -> Tensor:
        """The sampler's result with the source, at the level of the last sigma, where the mask is 0."""
        return self._blended(x, self.sigmas[-1], self.masks[-1])

    def _blended(self, x: Tensor, sigma: float, mask: Tensor) -> Tensor:
        return keep(x, self.law.noised(self.known, sigma, self.noise(x)), mask)
