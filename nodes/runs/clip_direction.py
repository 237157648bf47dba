"""The change of a picture in CLIP's space, and the VAE, joined to a loss on latents."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...samplers.clip_direction import change, direction_distance
from ...samplers.clip_guidance import cutouts, inside, within_range
from ...samplers.gradient_guidance import Loss
from ..host import Run
from ..host import clip as host_clip
from ..host import vae as host_vae
from .clip_guidance import OfTower
from .picture_losses import as_decoded, check_counts, of_pictures, places_in


@dataclass(frozen=True)
class CLIPDirectionLoss(OfTower):
    """One minus the cosine between the change from a picture to the decoded estimate and one between two texts."""

    clip_vision: Any
    vae: Any
    image: Tensor
    """(1 or batch, h, w, 3), of the decoded estimate's size"""
    wanted: Tensor
    """(1, width), from one text's embedding to the other's"""
    cutouts: int
    smallest: float = 0.0
    """Of the cutouts' sides, as a share of the picture's shorter side."""

    def start(self, run: Run, latent_format, differentiable: Callable) -> Loss:
        host_vae.check_decodes(self.vae, run.known, "CLIP judges")
        check_counts(run, image=self.image)
        tower, draw = differentiable(self.clip_vision.patcher), run.noise("cutouts")
        source, wanted = (
            each.to(run.known.device, torch.float32)
            for each in (as_decoded(self.vae, run, self.image).movedim(-1, 1), self.wanted)
        )

        def embedded(pictures: Tensor, places: Tensor | None, uniform: Tensor) -> Tensor:
            """(batch, cutouts, width)"""
            pictures = pictures if places is None else inside(pictures, places)
            pictures = pictures.expand(len(uniform), -1, -1, -1)
            squares = cutouts(pictures, uniform, self.clip_vision.image_size, self.smallest)
            return host_clip.embedded(self.clip_vision, tower, squares.flatten(0, 1)).unflatten(0, squares.shape[:2])

        def judge(pictures: Tensor) -> Tensor:
            uniform = self.uniform(draw, pictures)
            places = places_in(run, pictures)
            with torch.no_grad():
                before = embedded(source, places, uniform)
            moved = change(before, embedded(within_range(pictures), places, uniform))
            return direction_distance(moved, wanted).mean(1)

        return of_pictures(self.vae, latent_format, differentiable, judge)
