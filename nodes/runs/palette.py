"""A picture's colours and the VAE joined to a loss on latents."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...samplers.gradient_guidance import Loss
from ...samplers.palette import reduced, sliced_wasserstein
from ..host import Run
from ..host import vae as host_vae
from .picture_losses import check_counts, decoder_memory, of_pictures, places_in


@dataclass(frozen=True)
class PaletteLoss:
    """The sliced Wasserstein-1 distance of the decoded estimate's colours to those of a picture, for each latent value.

    So a scale means the same at every size: a gradient of the mean over more pixels is less in each.
    """

    vae: Any
    image: Tensor
    """(1 or batch, h, w, 3)"""
    directions: int

    noisy = False
    by_picture = ("image",)

    @property
    def patchers(self) -> tuple:
        return (self.vae.patcher,)

    def memory(self, shape: tuple[int, ...]) -> float:
        return decoder_memory(self.vae, shape)

    def start(self, run: Run, latent_format, differentiable: Callable) -> Loss:
        host_vae.check_decodes(self.vae, run.known, "a palette is of")
        check_counts(run, image=self.image)
        reference = pixels_of(reduced(self.image.movedim(-1, 1).to(run.known.device, torch.float32)))
        draw, count = run.noise("directions"), run.known[0].numel()

        def judge(pictures: Tensor) -> Tensor:
            directions = draw(pictures.new_empty(pictures.shape[0], self.directions, 3))
            places = places_in(run, pictures)
            weight = None if places is None else pixels_of(reduced(places))[..., 0]
            return count * sliced_wasserstein(pixels_of(reduced(pictures)), reference, directions, weight)

        return of_pictures(self.vae, latent_format, differentiable, judge)


def pixels_of(pictures: Tensor) -> Tensor:
    """(batch, channels, h, w) to (batch, h w, channels)."""
    return pictures.flatten(2).mT
