"""A depth network and the VAE joined to a loss on latents."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ...samplers.depth import depth_distance, size_for
from ...samplers.gradient_guidance import Loss
from ..host import Run, gradients
from ..host import depth as host_depth
from ..host import vae as host_vae
from .clip_guidance import transformer_memory
from .picture_losses import check_counts, decoder_memory, of_pictures, places_in


@dataclass(frozen=True)
class DepthLoss:
    """How far the depth of the decoded estimate is from a picture's, by a depth network."""

    model: Any
    """A DA3_MODEL or MOGE_MODEL of the host."""
    vae: Any
    image: Tensor
    """(1 or batch, h, w, 3)"""
    resolution: int
    """Of the longer side that the network sees."""

    noisy = False
    by_picture = ("image",)

    @property
    def patchers(self) -> tuple:
        return self.vae.patcher, host_depth.patcher_of_depth(self.model)

    def memory(self, shape: tuple[int, ...]) -> float:
        height, width = size_for((shape[-2], shape[-1]), self.resolution)
        network = transformer_memory(self.patchers[1].model, shape[0] * height * width // 14**2)
        return decoder_memory(self.vae, shape) + network

    def start(self, run: Run, latent_format, differentiable: Callable) -> Loss:
        host_vae.check_decodes(self.vae, run.known, "depth is of")
        check_counts(run, image=self.image)
        size = self._size(run)
        network = differentiable(self.patchers[1])
        image = self.image.movedim(-1, 1).to(run.known.device, torch.float32)
        with gradients(), torch.no_grad():
            wanted, known = host_depth.disparity(self.model, network, image, size)
        check_depth(wanted, known)

        def judge(pictures: Tensor) -> Tensor:
            ours, valid = host_depth.disparity(self.model, network, pictures, size)
            valid = (valid & known).to(ours)
            places = places_in(run, pictures)
            if places is not None:
                valid = valid * interpolate(places, size, mode="bilinear")[:, 0].to(ours)
            return depth_distance(ours, wanted.expand_as(ours), valid)

        return of_pictures(self.vae, latent_format, differentiable, judge)

    def _size(self, run: Run) -> tuple[int, int]:
        """What the network sees; ValueError for an image of another aspect than the picture's."""
        height, width = host_vae.decoded_size(self.vae, run.known)
        high, wide = self.image.shape[1:3]
        if abs(high * width - wide * height) > 0.03 * wide * height:
            raise ValueError(
                f"image is {wide}x{high} and the picture of latent_image {width}x{height}, of another aspect; crop the "
                "image to that aspect"
            )
        return size_for((height, width), self.resolution)


def check_depth(disparity: Tensor, valid: Tensor) -> None:
    """ValueError for a picture of the batch that is all sky, or of one distance."""
    for each, where in zip(disparity, valid, strict=True):
        depths = each[where]
        if len(depths) < 2 or not float(depths.std()) > 1e-6 * float(depths.abs().mean()):
            raise ValueError(
                "image has no depth to the model: it is all sky, or all of one distance; take a picture with near and "
                "far things"
            )
