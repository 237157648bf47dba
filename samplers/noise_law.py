"""How a model family mixes picture and noise: the one place where families differ.

Latents are `x = alpha(sigma) x0 + std(sigma) n` with n standard normal. The formulas below are written once for
both laws, in the ratio `std / alpha`; the variance-exploding ones are DDIM's (Song et al. 2021, arXiv:2010.02502,
eq. 12 and 16, after `z = x / sqrt(1 + sigma^2)`), the flow ones follow by `X = x / alpha`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt

from torch import Tensor

Noise = Callable[[Tensor], Tensor]
"""Called with a latent, returns standard normal noise of its shape, dtype and device."""


@dataclass(frozen=True)
class NoiseLaw:
    """Variance exploding (eps, v, EDM models: alpha = 1) or rectified flow (alpha = 1 - sigma).

    `noise_scale` is the host's factor on a flow model's noise. Sigmas are floats, latents are (batch, channels, ...).
    """

    flow: bool = False
    noise_scale: float = 1.0

    @property
    def name(self) -> str:
        return "rectified-flow" if self.flow else "variance-exploding"

    def alpha(self, sigma: float) -> float:
        return 1.0 - sigma if self.flow else 1.0

    def std(self, sigma: float) -> float:
        return self.noise_scale * sigma

    def noised(self, x0: Tensor, sigma: float, noise: Tensor) -> Tensor:
        """The picture at level sigma: `alpha x0 + std noise`."""
        return self.alpha(sigma) * x0 + self.std(sigma) * noise

    def kept(self, sigma: float, next_sigma: float) -> float:
        """`r'/r`: what a step down keeps of a deviation, without dividing by alpha, 0 for a flow model at sigma 1."""
        return self.std(next_sigma) * self.alpha(sigma) / (self.alpha(next_sigma) * self.std(sigma))

    def step(
        self, x: Tensor, denoised: Tensor, sigma: float, next_sigma: float, eta: float = 0.0, noise: Noise | None = None
    ) -> Tensor:
        """One step down. eta 0 is the ODE step (DDIM, Euler), eta 1 draws from the DDPM posterior.

        `s = eta std' sqrt(1 - (r'/r)^2)`, `x' = alpha' D + sqrt(std'^2 - s^2) n + s z` with `r = std/alpha`.
        """
        alpha, alpha_next = self.alpha(sigma), self.alpha(next_sigma)
        std_next = self.std(next_sigma)
        ratio = self.kept(sigma, next_sigma)
        random = eta * std_next * sqrt(max(0.0, 1.0 - ratio * ratio))
        kept = sqrt(max(0.0, std_next * std_next - random * random)) / self.std(sigma)
        x = alpha_next * denoised + kept * (x - alpha * denoised)
        if random <= 0.0:
            return x
        if noise is None:
            raise ValueError(f"a step with eta {eta:g} draws noise, but no noise was given")
        return x + random * noise(x)

    def jump(self, x: Tensor, sigma: float, next_sigma: float, noise: Noise) -> Tensor:
        """One step up, from sigma to a larger next_sigma: `(alpha'/alpha) x` plus the noise that is missing there."""
        scale = self.alpha(next_sigma) / self.alpha(sigma)
        missing = self.std(next_sigma) ** 2 - (scale * self.std(sigma)) ** 2
        return scale * x + sqrt(max(0.0, missing)) * noise(x)


VARIANCE_EXPLODING = NoiseLaw()
RECTIFIED_FLOW = NoiseLaw(flow=True)
