"""CLIP's towers and the VAE joined to a loss on latents."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...samplers.clip_guidance import cutouts, inside, spherical_distance, within_range
from ...samplers.gradient_guidance import Loss
from ...samplers.noise_law import Noise
from ..host import Run
from ..host import clip as host_clip
from ..host import vae as host_vae
from .picture_losses import of_pictures, places_in


class OfTower:
    """What losses share that read cutouts of the decoded estimate by a vision tower."""

    clip_vision: Any
    vae: Any
    cutouts: int

    noisy = False
    by_picture: tuple[str, ...] = ("image",)

    @property
    def patchers(self) -> tuple:
        return self.vae.patcher, self.clip_vision.patcher

    def memory(self, shape: tuple[int, ...]) -> float:
        return tower_memory(self.clip_vision, self.vae, shape, self.cutouts)

    def uniform(self, draw: Noise, pictures: Tensor) -> Tensor:
        """(batch, cutouts, 3), 0 to 1: where the cutouts lie."""
        return torch.special.ndtr(draw(pictures.new_empty(len(pictures), self.cutouts, 3)))


@dataclass(frozen=True)
class CLIPLoss(OfTower):
    """Half the squared angle between the target's embedding and a cutout's of the decoded estimate, as a mean."""

    clip_vision: Any
    vae: Any
    target: Tensor
    """(1 or batch, width)"""
    cutouts: int
    smallest: float = 0.0
    """Of the cutouts' sides, as a share of the picture's shorter side."""

    by_picture = ("target",)

    def start(self, run: Run, latent_format, differentiable: Callable) -> Loss:
        _check_fits(self, run)
        tower = differentiable(self.clip_vision.patcher)
        draw = run.noise("cutouts")
        target = self.target.to(run.known.device, torch.float32)

        def judge(pictures: Tensor) -> Tensor:
            pictures, places = within_range(pictures), places_in(run, pictures)
            if places is not None:
                pictures = inside(pictures, places)
            squares = cutouts(pictures, self.uniform(draw, pictures), self.clip_vision.image_size, self.smallest)
            embeddings = host_clip.embedded(self.clip_vision, tower, squares.flatten(0, 1))
            return spherical_distance(embeddings.unflatten(0, squares.shape[:2]), target[:, None]).mean(1)

        return of_pictures(self.vae, latent_format, differentiable, judge)


def _check_fits(loss: CLIPLoss, run: Run) -> None:
    host_vae.check_decodes(loss.vae, run.known, "CLIP judges")
    batch = run.known.shape[0]
    if loss.target.shape[0] not in (1, batch):
        raise ValueError(
            f"the loss has {loss.target.shape[0]} targets for a batch of {batch}; give one, or one for each"
        )


def tower_memory(clip_vision, vae, shape: tuple[int, ...], squares: int) -> float:
    """About how many bytes the way back through the tower and the decoder takes at the least, for such latents."""
    tower = clip_vision.model
    positions = next(weight.shape[0] for name, weight in tower.named_parameters() if "position_embedding" in name)
    kept = transformer_memory(tower, shape[0] * squares * positions)
    decoder = vae.memory_used_decode(shape, vae.vae_dtype)
    return decoder + max(kept, 0.15 * decoder + 2**26)  # the tower's backward, or after it the decoder's


def transformer_memory(network: torch.nn.Module, tokens: int) -> float:
    """About how many bytes a vision transformer's way back takes in float32, where activations are computed again.

    Measured with CLIP-ViT-L: it keeps the input of each layer, and the layer being computed takes 33 times as much.
    """
    weights = sum(weight.numel() for weight in network.parameters())
    width = next((weight.shape[0] for weight in network.parameters() if weight.ndim == 4), 1)  # the patches' embedding
    layers = weights / (12 * width**2)
    return tokens * width * (layers + 33) * 4
