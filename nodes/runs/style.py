"""An early layer of a vision tower and the VAE joined to a loss on latents."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from ...samplers.clip_guidance import cutouts, within_range
from ...samplers.gradient_guidance import Loss
from ...samplers.style import gram, style_distance
from ..host import Run
from ..host import clip as host_clip
from ..host import vae as host_vae
from .clip_guidance import OfTower
from .picture_losses import check_counts, of_pictures, places_in


@dataclass(frozen=True)
class StyleLoss(OfTower):
    """The distance of the Gram matrix of the decoded estimate's cutouts to that of a picture's, cut alike."""

    clip_vision: Any
    vae: Any
    image: Tensor
    """(1 or batch, h, w, 3)"""
    layer: int
    """1 is the first."""
    cutouts: int
    smallest: float = 0.0
    """Of the cutouts' sides, as a share of the picture's shorter side."""

    def start(self, run: Run, latent_format, differentiable: Callable) -> Loss:
        host_vae.check_decodes(self.vae, run.known, "a style is of")
        check_counts(run, image=self.image)
        tower, draw = differentiable(self.clip_vision.patcher), run.noise("cutouts")
        reference = self.image.movedim(-1, 1).to(run.known.device, torch.float32)

        def style(pictures: Tensor, places: Tensor | None, uniform: Tensor) -> Tensor:
            """The Gram matrix of all cutouts of each picture."""
            squares = self._cut(pictures, uniform)
            states = host_clip.states(self.clip_vision, tower, squares.flatten(0, 1), self.layer)
            weight = torch.ones_like(states[..., 0])
            if places is not None:
                side = round(states.shape[1] ** 0.5)
                weight = adaptive_avg_pool2d(self._cut(places, uniform).flatten(0, 1).clamp(0.0, 1.0), side)
            return gram(*(each.reshape(len(pictures), -1, *each.shape[2:]) for each in (states, weight.flatten(1))))

        def judge(pictures: Tensor) -> Tensor:
            uniform = self.uniform(draw, pictures)
            places = places_in(run, pictures)
            with torch.no_grad():
                wanted = style(reference.expand(len(pictures), -1, -1, -1), None, uniform)
            return style_distance(style(within_range(pictures), places, uniform), wanted)

        return of_pictures(self.vae, latent_format, differentiable, judge)

    def _cut(self, pictures: Tensor, uniform: Tensor) -> Tensor:
        pictures = pictures.expand(len(uniform), -1, -1, -1)
        return cutouts(pictures, uniform, self.clip_vision.image_size, self.smallest)
