"""A measured picture, its operators and the VAE joined to a loss on latents."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...samplers.gradient_guidance import Loss
from ...samplers.measurement import Operator, fitted, squared_gaps
from ..host import Run
from ..host import vae as host_vae
from .picture_losses import check_counts, decoder_memory, of_pictures


@dataclass(frozen=True)
class MeasurementLoss:
    """`-log p(image | picture)` of the decoded estimate: scale 1 is Bayes at this noise."""

    vae: Any
    image: Tensor
    """(1 or batch, h, w, 3)"""
    noise: float
    """The standard deviation of a pixel, 0 to 1."""
    operators: tuple[Operator, ...]
    weight: Tensor | None
    """(1 or batch, h, w), 1 where the image counts."""

    noisy = False
    by_picture = ("image", "weight")

    @property
    def patchers(self) -> tuple:
        return (self.vae.patcher,)

    def memory(self, shape: tuple[int, ...]) -> float:
        return decoder_memory(self.vae, shape)

    def start(self, run: Run, latent_format, differentiable: Callable) -> Loss:
        host_vae.check_decodes(self.vae, run.known, "a measurement is of")
        check_counts(run, image=self.image, mask=self.weight)
        height, width = self.image.shape[1:3]
        operators = fitted(self.operators, host_vae.decoded_size(self.vae, run.known), (height, width))
        measured = self.image.movedim(-1, 1).to(run.known.device, torch.float32)
        weight = torch.ones_like(measured[:, :1]) if self.weight is None else self.weight[:, None].to(measured)
        gaps = squared_gaps(operators, measured, weight)

        def judge(pictures: Tensor) -> Tensor:
            return gaps(pictures) / (2.0 * self.noise**2)

        return of_pictures(self.vae, latent_format, differentiable, judge)
