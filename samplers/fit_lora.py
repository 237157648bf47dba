"""DiffusionCLIP (Kim et al. 2022, arXiv:2110.02711): weights fitted so that inverted pictures come out changed.

From its inversion each picture is generated again, and at each step the weights are updated by a loss on the denoised
estimate and its distance to the picture (eq. 8 and 9). The next step starts from a latent that is not differentiated,
which takes the memory of one step (their "GPU-efficient fine-tuning").
"""

from collections.abc import Callable, Generator, Sequence
from itertools import pairwise
from math import isfinite
from typing import NamedTuple

import torch
from torch import Tensor

from .inversion import Inversion
from .optimise import Adam


class Place(NamedTuple):
    """Where a fit is: a picture of the inversion's batch on its way down."""

    picture: int
    x: Tensor
    """(1, channels, ...) at level `sigma`."""
    sigma: float
    next_sigma: float
    source: Tensor
    """The picture's latent (1, channels, ...)."""


class Slopes(NamedTuple):
    """The objective at a place, and its gradients by the parameters."""

    value: float
    denoised: Tensor
    gradients: list[Tensor]


class FitStep(NamedTuple):
    """What `fit` yields after each update."""

    iteration: int
    picture: int
    loss: float
    """The objective before the update."""
    x: Tensor
    """The latent after the step."""
    denoised: Tensor
    sigma: float


def fit(
    slopes: Callable[[Place], Slopes],
    parameters: Sequence[Tensor],
    inversion: Inversion,
    learning_rate: float,
    iterations: int,
) -> Generator[FitStep, None, None]:
    """Updates the parameters in place, at each step of each picture, and goes through all pictures `iterations` times.

    Latents are used on the first parameter's device. ValueError where the objective is not finite.
    """
    law, adams = inversion.law, [Adam(learning_rate) for _ in parameters]
    for iteration in range(iterations):
        for picture in range(len(inversion.latents[0])):
            x, source = (inversion.latents[end][picture, None].to(parameters[0]) for end in (0, -1))
            for sigma, next_sigma in pairwise(inversion.sigmas):
                value, denoised, gradients = slopes(Place(picture, x, sigma, next_sigma, source))
                if not isfinite(value):
                    raise ValueError(
                        f"the loss is {value:g} at iteration {iteration + 1}, picture {picture + 1}, sigma "
                        f"{sigma:.4g}; lower learning_rate, or run the model at a higher precision (--bf16-unet, "
                        "--fp32-unet)"
                    )
                _update(parameters, adams, gradients)
                x = law.step(x, denoised.to(x), sigma, next_sigma)
                yield FitStep(iteration, picture, value, x, denoised, sigma)


def _update(parameters: Sequence[Tensor], adams: list[Adam], gradients: list[Tensor]) -> None:
    with torch.inference_mode(False), torch.no_grad():
        for parameter, adam, gradient in zip(parameters, adams, gradients, strict=True):
            parameter.copy_(adam.step(parameter, gradient))


def slopes_of(denoised: Tensor, objective: Callable[[Tensor], Tensor], parameters: Sequence[Tensor]) -> Slopes:
    """The value of `objective(denoised)`, a scalar, and its gradients by the parameters, on which `denoised` depends.

    In two parts, since a model in half precision loses small gradients: its own is of one of unit size.
    """
    estimate = denoised.detach().float().requires_grad_()
    value = objective(estimate)
    (slope,) = torch.autograd.grad(value, estimate)
    size = slope.abs().max().clamp(min=1e-30)
    gradients = torch.autograd.grad(denoised, list(parameters), (slope / size).to(denoised), materialize_grads=True)
    return Slopes(float(value.detach()), denoised.detach(), [gradient * size for gradient in gradients])
