"""CLIP's towers and the VAE of the host, as a loss on latents differentiates them."""

from collections.abc import Callable
from dataclasses import dataclass

import comfy.clip_model
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ..samplers.clip_guidance import cutouts, inside, spherical_distance, within_range
from ..samplers.gradient_guidance import Loss
from ._host import Run
from ._host_attention import check_writable
from ._pictures import check_picture


@dataclass(frozen=True)
class CLIPLoss:
    """Half the squared angle between a target's embedding and those of a decoded estimate's cutouts, their mean."""

    clip_vision: object
    vae: object
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
        # at the least, in float32, as measured at the sizes of SD1.x's VAE and CLIP-ViT-L, where what does not fit is
        # computed again: of the tower each layer's input is kept, and one layer takes about 33 times as much
        tower = self.clip_vision.model
        weights = sum(weight.numel() for weight in tower.parameters())
        width = next(weight.shape[0] for weight in tower.parameters() if weight.ndim == 4)
        positions = next(weight.shape[0] for name, weight in tower.named_parameters() if "position_embedding" in name)
        layers = weights / (12 * width**2)
        kept = shape[0] * self.cutouts * positions * width * (layers + 33) * 4
        decoder = self.vae.memory_used_decode(shape, self.vae.vae_dtype)
        return decoder + max(kept, 0.15 * decoder + 2**26)  # the tower's way back, or then the decoder's

    def start(self, run: Run, latent_format, differentiable: Callable) -> Loss:
        _check_fits(self, run)
        decoder, tower = (differentiable(patcher) for patcher in self.patchers)
        draw = run.noise("cutouts")
        target = self.target.to(run.known.device, torch.float32)

        def loss(denoised: Tensor, sigma: float) -> Tensor:
            pictures = within_range(decoded(self.vae, decoder, latent_format.process_out(denoised)))
            if run.mask is not None:
                places = run.mask.reshape(-1, 1, *run.mask.shape[-2:])  # of one frame
                pictures = inside(pictures, interpolate(places, pictures.shape[-2:], mode="bilinear"))
            uniform = torch.special.ndtr(draw(denoised.new_empty(denoised.shape[0], self.cutouts, 3)))
            squares = cutouts(pictures, uniform, self.clip_vision.image_size, self.smallest)
            found = _embedded(self.clip_vision, tower, squares.flatten(0, 1)).unflatten(0, squares.shape[:2])
            return spherical_distance(found, target[:, None]).mean(1)

        return loss


def _check_fits(loss: CLIPLoss, run: Run) -> None:
    batch, channels = run.known.shape[:2]
    if channels != loss.vae.latent_channels:
        raise ValueError(
            f"vae has {loss.vae.latent_channels} latent channels and the model works on {channels}; connect the VAE "
            "that belongs to the model"
        )
    if not hasattr(loss.vae.first_stage_model, "decode"):
        raise ValueError("vae has no decoder (the file it was loaded from holds none); connect the VAE of the model")
    if run.known.ndim == 5 and run.known.shape[2] != 1:
        raise ValueError(f"latent_image has {run.known.shape[2]} frames; CLIP judges single pictures")
    if loss.target.shape[0] not in (1, batch):
        raise ValueError(
            f"the loss has {loss.target.shape[0]} targets for a batch of {batch}; give one, or one for each"
        )


def decoded(vae, decoder, latent: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Latents as on the host's wires to pictures (batch, 3, h, w), about 0..1 and not clamped, with gradients.

    Computed in `dtype`, without one in the VAE's own.
    """
    if latent.ndim == 5 and vae.latent_dim == 2:
        latent = latent[:, :, 0]
    raw = decoder(lambda: vae.first_stage_model.decode(latent.to(dtype or vae.vae_dtype))).float()
    # the host's own scaling clamps in place: what it does to numbers is read off two that it does not clamp
    zero, quarter = vae.process_output(torch.tensor([0.0, 0.25], device=raw.device)).tolist()
    pictures = zero + (quarter - zero) / 0.25 * raw
    return pictures[:, :3, 0] if pictures.ndim == 5 else pictures[:, :3]


def _embedded(clip_vision, tower, pictures: Tensor) -> Tensor:
    """Square pictures (n, 3, size, size) in 0..1 to embeddings (n, width), with gradients."""
    mean, std = (
        torch.tensor(values, device=pictures.device).view(3, 1, 1)
        for values in (clip_vision.image_mean, clip_vision.image_std)
    )
    pixels = (pictures - mean) / std
    return tower(lambda: clip_vision.model(pixel_values=pixels, intermediate_output=-2))[2].float()


def text_target(clip, clip_vision, text: str) -> Tensor:
    """The text's embedding (1, width) in the space of the vision tower; ValueError when they share none."""
    check_writable(text)
    shared = getattr(getattr(clip_vision.model, "visual_projection", None), "weight", None)
    if shared is None:
        raise ValueError(
            f"clip_vision is a {type(clip_vision.model).__name__} without a projection into the space that CLIP shares "
            "with text; load a CLIP vision model (CLIP-ViT-L, -H or -bigG)"
        )
    # "unprojected", since whether the host projects depends on what the encoder was loaded for
    pooled = clip.encode_from_tokens(clip.tokenize(text), return_pooled="unprojected")[1]
    projection, width = _text_projection(clip, pooled), shared.shape[0]
    if projection.shape[0] != width:
        raise ValueError(
            f"clip's text embedding has width {projection.shape[0]} and clip_vision's {width}: the two towers share no "
            "space; load both of one CLIP (clip_l with CLIP-ViT-L, SDXL's clip_g with CLIP-ViT-bigG)"
        )
    if torch.equal(projection, torch.eye(width)) or not projection.any():
        raise ValueError(
            "clip has no text projection (checkpoints of SD1.x leave it out, and the host puts the identity or zeros "
            "there), so its text is not in the space it shares with CLIP vision; load the whole text tower with "
            "CLIPLoader (clip_l.safetensors)"
        )
    return pooled.float().cpu() @ projection.T


def _text_projection(clip, pooled: Tensor | None) -> Tensor:
    """The weight (joint width, text width) of the text tower that pooled; ValueError where CLIP's tower did not."""
    towers = [part for part in clip.cond_stage_model.modules() if isinstance(part, comfy.clip_model.CLIPTextModel)]
    weights = [tower.text_projection.weight for tower in towers]
    found = [weight for weight in weights if pooled is not None and weight.shape[1] == pooled.shape[-1]]
    if not found:
        raise ValueError(
            f"clip ({type(clip.cond_stage_model).__name__}) pools its text into "
            f"{'nothing' if pooled is None else f'width {pooled.shape[-1]}'}, which is no CLIP text tower's; load a "
            "single CLIP with CLIPLoader (clip_l.safetensors)"
        )
    return found[0].float().cpu()


def image_target(clip_vision, image: Tensor) -> Tensor:
    """The embeddings (batch, width) of pictures (batch, h, w, 3 or 4), each cropped to its middle square."""
    check_picture("image", image, alpha=True)
    return clip_vision.encode_image(image)["image_embeds"].float().cpu()
