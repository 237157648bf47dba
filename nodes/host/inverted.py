"""An inversion as the host takes it: which model it is of, and the LATENT and NOISE that start a run where it leads."""

from math import hypot

import comfy.latent_formats
import comfy.model_management
from torch import Tensor

from ...samplers.inversion import Inversion
from ...samplers.noise_law import NoiseLaw
from .law import noise_law


def noise_to(x: Tensor, source: Tensor, sigma: float, law: NoiseLaw, from_top: bool) -> Tensor:
    """The noise from which the host makes x at level sigma of the source; `from_top`: the model's highest level."""
    # what the host multiplies the noise by: at the highest level of a variance-exploding model sqrt(1 + sigma^2)
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


def check_fits(inversion: Inversion, model) -> None:
    """ValueError for an inversion that this model cannot have made."""
    made_for, format_name = inversion.latent_format, type(model.get_model_object("latent_format")).__name__
    law = noise_law(model.get_model_object("model_sampling"))
    if made_for != format_name or inversion.law != law:
        raise ValueError(
            f"the inversion is of a {inversion.law.name} model with {made_for} latents, and this model is a "
            f"{law.name} one with {format_name} latents; use the model that it was made with"
        )


class InvertedSeed(int):
    """The seed of a NOISE that an inversion made. A run with it starts from the whole source, under a mask too."""


class InvertedNoise:
    """A host NOISE with which sampling starts exactly at an inverted latent, from the LATENT of the same inversion."""

    seed = InvertedSeed(0)

    def __init__(self, noise: Tensor):
        self._noise = noise

    def generate_noise(self, input_latent: dict) -> Tensor:
        shape = tuple(input_latent["samples"].shape)
        if shape != tuple(self._noise.shape):
            raise ValueError(
                f"SteerDDIMInversion: the inverted noise is for a latent of shape {tuple(self._noise.shape)}, not "
                f"{shape}; connect the LATENT of the same inversion"
            )
        return self._noise.clone()


def start(inversion: Inversion) -> tuple[dict, InvertedNoise]:
    """LATENT and NOISE that start sampling at `inversion.latents[0]`, the same whether from a run or from a file."""
    latent_format, sigma, law = latent_format_of(inversion), inversion.sigmas[0], inversion.law
    # on the device where runs end, since a GPU rounds otherwise: so a run that keeps the source ends with these numbers
    samples = latent_format.process_out(inversion.latents[-1].to(comfy.model_management.get_torch_device())).cpu()
    source = latent_format.process_in(samples) if samples.any() else samples
    return {"samples": samples}, InvertedNoise(noise_to(inversion.latents[0], source, sigma, law, inversion.from_top))
