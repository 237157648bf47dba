"""Gradient guidance: a loss that nobody trained the model on steers the process.

Classifier guidance (Dhariwal and Nichol 2021, arXiv:2105.05233, alg. 2) moves the predicted noise by the gradient of
log p(y | x); in denoised estimates, by Tweedie's formula, `D' = D + scale (std^2 / alpha) grad_x log p(y | x)`. Any
loss L in the place of -log p(y | x) guides the same way (Bansal et al. 2023, arXiv:2302.07121, eq. 5).
"""

from collections.abc import Callable, Iterator
from math import sqrt

import torch
from torch import Tensor

from .noise_law import NoiseLaw

Loss = Callable[[Tensor, float], Tensor]
"""`loss(latent, sigma)`: (batch, channels, ...) to (batch,), what is to become less, each sample's by itself."""


def change_by_x(gradient: Tensor, sigma: float, law: NoiseLaw) -> Tensor:
    """`-(std^2 / alpha) dL/dx`, by how much a loss changes the denoised estimate. Not for levels that are `at_top`."""
    return -(law.std(sigma) ** 2) / law.alpha(sigma) * gradient


def at_top(sigma: float, law: NoiseLaw) -> bool:
    """Whether this is a flow model's sigma 1, up to rounding: alpha and dL/dx are 0, and the change is their limit."""
    return law.alpha(sigma) < 1e-4


NEAR = 0.003
"""How far below the top the limit is taken, as alpha / std."""


def near_top(law: NoiseLaw) -> float:
    """The level for `change_by_x` of the gradients' sum at the top, see `round_top`."""
    return 1.0 / (1.0 + NEAR * law.noise_scale)


def round_top(x: Tensor, denoised: Tensor, sigma: float, law: NoiseLaw) -> Iterator[tuple[Tensor, float, float]]:
    """Where to take dL/dx besides x: (x, sigma, weight). With -1/2 of that at x, `change_by_x` of the sum is the limit.

    For an exact likelihood it is `E[x0 | y] - E[x0]`. The mean over x's noise and the opposite one leaves an error of
    the square of NEAR. At the top the gradients should be 0; those that a trained model has there are subtracted, since
    the same error just below is divided by a small alpha.
    """
    below = near_top(law)
    yield law.step(x, denoised, sigma, below), below, 0.5
    yield law.step(-x, denoised, sigma, below), below, 0.5
    yield -x, sigma, -0.5


def change_by_estimate(gradient: Tensor, sigma: float, law: NoiseLaw) -> Tensor:
    """The same from dL/dD, without the derivative of the model.

    That is taken to be `dD/dx = alpha / (alpha^2 + std^2)`, as it is for independent data of unit variance. Taking it
    to be 1, as is often done, overshoots by far at high levels, where the estimate hardly depends on x.
    """
    return -undecided(sigma, law) * gradient


def undecided(sigma: float, law: NoiseLaw) -> float:
    """`std^2 / (alpha^2 + std^2)`: the variance of the picture given x, for independent data of unit variance."""
    noise = law.std(sigma) ** 2
    return noise / (law.alpha(sigma) ** 2 + noise)


def limited(change: Tensor, sigma: float, law: NoiseLaw, max_change: float, mask: Tensor | None = None) -> Tensor:
    """The change inside the mask (1 = change), per sample of an RMS of at most `max_change sqrt(undecided)`.

    At high levels that is `max_change` times the latents' own spread, at low levels as many times the noise: a gradient
    that points the right way but too far cannot throw the estimate out of what is still possible. The RMS is over the
    mask; where that is empty nothing changes.
    """
    weight = torch.ones_like(change) if mask is None else mask.to(change).expand_as(change)
    change, axes = weight * change, tuple(range(1, change.ndim))
    # scaled by the largest value first: the square of a large gradient has no place in float32
    largest = change.abs().amax(axes, keepdim=True).clamp(min=1e-30)
    mean = (change / largest).square().sum(axes, keepdim=True) / weight.sum(axes, keepdim=True).clamp(min=1e-30)
    rms = (largest * mean.sqrt()).clamp(min=1e-30)
    return change * (max_change * sqrt(undecided(sigma, law)) / rms).clamp(max=1.0)
