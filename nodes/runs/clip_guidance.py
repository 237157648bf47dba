"""CLIP's towers and the VAE joined to a loss on latents."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ...samplers.clip_guidance import cutouts, inside, spherical_distance, within_range
from ...samplers.gradient_guidance import Loss
from ..host import Run
from ..host import clip as host_clip
from ..host import vae as host_vae


@dataclass(frozen=True)
class CLIPLoss:
    """Half the squared angle between the target's embedding and a cutout's of the decoded estimate, as a mean."""

    clip_vision: Any
    vae: Any
    target: Tensor
    """(1 or batch, width)"""
    cutouts: int
    smallest: float = 0.0
    """Of the cutouts' sides, as a share of the picture's shorter side."""

    noisy = False

    @property
    def patchers(self) -> tuple:
        return self.vae.patcher, self.clip_vision.patcher

    def memory(self, shape: tuple[int, ...]) -> float:
        # The least there can be, in float32, where activations are computed again. Measured with SD1.x's VAE and
        # CLIP-ViT-L: the tower keeps the input of each layer, and the layer being computed takes 33 times as much.
        tower = self.clip_vision.model
        weights = sum(weight.numel() for weight in tower.parameters())
        width = next(weight.shape[0] for weight in tower.parameters() if weight.ndim == 4)
        positions = next(weight.shape[0] for name, weight in tower.named_parameters() if "position_embedding" in name)
        layers = weights / (12 * width**2)
        kept = shape[0] * self.cutouts * positions * width * (layers + 33) * 4
        decoder = self.vae.memory_used_decode(shape, self.vae.vae_dtype)
        return decoder + max(kept, 0.15 * decoder + 2**26)  # the tower's backward, or after it the decoder's

    def start(self, run: Run, latent_format, differentiable: Callable) -> Loss:
        _check_fits(self, run)
        decoder, tower = (differentiable(patcher) for patcher in self.patchers)
        draw = run.noise("cutouts")
        target = self.target.to(run.known.device, torch.float32)

        def loss(denoised: Tensor, sigma: float) -> Tensor:
            pictures = within_range(host_vae.decoded(self.vae, decoder, latent_format.process_out(denoised)))
            if run.mask is not None:
                places = run.mask.reshape(-1, 1, *run.mask.shape[-2:])  # of one frame
                pictures = inside(pictures, interpolate(places, pictures.shape[-2:], mode="bilinear"))
            uniform = torch.special.ndtr(draw(denoised.new_empty(denoised.shape[0], self.cutouts, 3)))
            squares = cutouts(pictures, uniform, self.clip_vision.image_size, self.smallest)
            embeddings = host_clip.embedded(self.clip_vision, tower, squares.flatten(0, 1))
            return spherical_distance(embeddings.unflatten(0, squares.shape[:2]), target[:, None]).mean(1)

        return loss


def _check_fits(loss: CLIPLoss, run: Run) -> None:
    host_vae.check_decodes(loss.vae, run.known, "CLIP judges")
    batch = run.known.shape[0]
    if loss.target.shape[0] not in (1, batch):
        raise ValueError(
            f"the loss has {loss.target.shape[0]} targets for a batch of {batch}; give one, or one for each"
        )
