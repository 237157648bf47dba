"""A host model's noise law and levels, and the latents that an inversion is of."""

from collections.abc import Callable
from math import hypot

import comfy.latent_formats
import comfy.model_management
import comfy.sample
import comfy.samplers
import torch
from comfy.model_sampling import CONST
from torch import Tensor

from ...samplers.inversion import Inversion
from ...samplers.noise_law import NoiseLaw
from ...samplers.window import Window


def strength_sigma(model_sampling, strength: float) -> float:
    """The noise level at a strength, the share of diffusion time from 0 (clean) to 1 (all noise)."""
    # at percent 0 the host answers a placeholder far above the model's range
    return min(float(model_sampling.percent_to_sigma(1.0 - strength)), float(model_sampling.sigma_max))


def sigma_at(model) -> Callable[[float], float]:
    """The model's noise level at a share of the run: 0 is above all of them, 1 is 0."""
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


def noise_to(x: Tensor, source: Tensor, sigma: float, law: NoiseLaw, from_top: bool) -> Tensor:
    """The noise from which the host makes x at level sigma of the source; `from_top`: the model's highest level."""
    # what the host multiplies the noise by; at the highest level more, where alpha is 1
    factor = hypot(1.0, sigma) if from_top and not law.flow else law.std(sigma)
    return ((x.double() - law.alpha(sigma) * source.double()) / factor).float()


def latent_format_of(inversion: Inversion):
    """The host's latent format of an inversion; ValueError unless this host has it and the channels agree."""
    name, channels = inversion.latent_format[:100], inversion.latents[0].shape[1]
    kind = getattr(comfy.latent_formats, name, None)
    if not (isinstance(kind, type) and issubclass(kind, comfy.latent_formats.LatentFormat)):
        raise ValueError(
            f"the inversion is of a model with the latent format {name!r}, which this ComfyUI does not have; "
            "update ComfyUI"
        )
    if channels != kind.latent_channels:
        raise ValueError(
            f"the inversion has {channels} channels, and its latent format {name} has {kind.latent_channels}; "
            "invert again with the model that will sample"
        )
    return kind()


def check_inversion_fits(inversion: Inversion, model) -> None:
    """ValueError for an inversion that this model cannot have made."""
    made_for, format_name = inversion.latent_format, type(model.get_model_object("latent_format")).__name__
    law = noise_law(model.get_model_object("model_sampling"))
    if made_for != format_name or inversion.law != law:
        raise ValueError(
            f"the inversion is of a {inversion.law.name} model with {made_for} latents, and this model is a "
            f"{law.name} one with {format_name} latents; use the model that it was made with"
        )
