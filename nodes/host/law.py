"""A host model's noise law, its levels and windows, and the schedules of its sigmas."""

from collections.abc import Callable

import comfy.samplers
import torch
from comfy.model_sampling import CONST

from ...samplers.noise_law import NoiseLaw
from ...samplers.window import Window


def strength_sigma(model, strength: float) -> float:
    """The model's noise level at a strength, the share of diffusion time from 0 (clean) to 1 (all noise)."""
    model_sampling = model.get_model_object("model_sampling")
    # at percent 0 the host answers a placeholder far above the model's range
    return min(float(model_sampling.percent_to_sigma(1.0 - strength)), float(model_sampling.sigma_max))


def sigma_at(model) -> Callable[[float], float]:
    """The model's noise level at a share of the run: share 0 gives a level above all others, share 1 gives 0."""
    return model.get_model_object("model_sampling").percent_to_sigma


def window_of(model, interval: tuple[float, float]) -> Window:
    """The window of a run of this model between two shares of it, both ends in it."""
    return Window(*map(sigma_at(model), interval))


def noise_law(model_sampling) -> NoiseLaw:
    """The law a host model is sampled with; ValueError for one that mixes picture and noise in another way."""
    law = NoiseLaw(isinstance(model_sampling, CONST), float(getattr(model_sampling, "noise_scale", 1.0)))
    sigma = torch.tensor([0.5])
    # probed, since a subclass may mix in its own way (image-to-image models do)
    for x0, noise in ((1.0, 0.0), (0.0, 1.0)):
        mixed = model_sampling.noise_scaling(sigma, torch.tensor([[noise]]), torch.tensor([[x0]]), False)
        if not torch.allclose(mixed, law.noised(torch.tensor([[x0]]), 0.5, torch.tensor([[noise]]))):
            raise ValueError(
                f"a model sampled as {type(model_sampling).__bases__[-1].__name__} mixes picture and noise in a way "
                "Steer does not know; eps, v, EDM and rectified-flow models work"
            )
    return law


SCHEDULERS = comfy.samplers.KSampler.SCHEDULERS


def host_sigmas(model, scheduler: str, steps: int) -> list[float]:
    """The sigmas of the host's scheduler for a whole run of the model."""
    return comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), scheduler, steps).tolist()
