"""The host's VAE with gradients: what it decodes, whether it can be fitted, and the memory that takes."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import comfy.model_management
import comfy.utils
import torch
from torch import Tensor

from .gradients.model import Differentiable
from .gradients.weights import host_layers
from .progress import log


def decoded(vae, decoder, latent: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Latents as on the host's wires to pictures (batch, 3, h, w), about 0..1 and not clamped, with gradients.

    Computed in `dtype`, without one in the VAE's own.
    """
    if latent.ndim == 5 and vae.latent_dim == 2:
        latent = latent[:, :, 0]
    raw = decoder(lambda: vae.first_stage_model.decode(latent.to(dtype or vae.vae_dtype))).float()
    # the host's scaling clamps in place; it is linear before that, and read off two values that are not clamped
    zero, quarter = vae.process_output(torch.tensor([0.0, 0.25], device=raw.device)).tolist()
    pictures = zero + (quarter - zero) / 0.25 * raw
    return pictures[:, :3, 0] if pictures.ndim == 5 else pictures[:, :3]


ACTIVATIONS = 1.7
"""Memory of a decoding with gradients, in units of what the host reckons for one without; see bench/reconstruct.md."""


def check_tunable(vae, latent: Tensor) -> None:
    """ValueError unless the VAE decodes such a latent into one picture, with weights that can be changed."""
    model = vae.first_stage_model
    kind = type(model).__name__
    if model is None or not hasattr(model, "decode") or not host_layers(model):
        raise ValueError(
            f"vae ({'none' if model is None else kind}) has no decoder with weights of its own, so there is nothing to "
            "optimise; connect the VAE of an image model (AutoencoderKL, TAESD)"
        )
    dimensions = {2: (4, 5), 3: (5,)}.get(vae.latent_dim, ())
    if latent.is_nested or latent.ndim not in dimensions or latent.ndim == 5 and latent.shape[2] != 1:
        shape = "a pack of several" if latent.is_nested else f"of shape {tuple(latent.shape)}"
        raise ValueError(
            f"latent is {shape} and the VAE ({kind}) one for latents of {vae.latent_dim} dimensions: only single "
            "pictures work, not clips or sound"
        )
    if latent.shape[1] != vae.latent_channels:
        raise ValueError(
            f"latent has {latent.shape[1]} channels and vae {vae.latent_channels}; connect the VAE that the latent "
            "belongs to"
        )


def check_decodes(vae, latent: Tensor, who: str) -> None:
    """ValueError unless the VAE has a decoder and decodes such latents (model space) into single pictures.

    `who` begins what is said of clips: "CLIP judges".
    """
    channels = latent.shape[1]
    if channels != vae.latent_channels:
        raise ValueError(
            f"vae has {vae.latent_channels} latent channels and the model works on {channels}; connect the VAE "
            "that belongs to the model"
        )
    if not hasattr(vae.first_stage_model, "decode"):
        raise ValueError("vae has no decoder (the file it was loaded from holds none); connect the VAE of the model")
    if latent.ndim == 5 and latent.shape[2] != 1:
        raise ValueError(f"latent_image has {latent.shape[2]} frames; {who} single pictures")


def decoded_size(vae, latent: Tensor) -> tuple[int, int]:
    """(height, width) of the picture that a latent decodes to."""
    ratio = vae.spacial_compression_decode()
    return latent.shape[-2] * ratio, latent.shape[-1] * ratio


def check_clip(vae, latent: Tensor) -> int:
    """How many frames each latent frame but the first holds, which holds one; ValueError unless it is a clip's latent.

    The VAE says how many frames so many latent frames are.
    """
    kind, ratios = type(vae.first_stage_model).__name__, vae.upscale_ratio
    if not (isinstance(ratios, tuple | list) and callable(ratios[0])):
        raise ValueError(f"vae ({kind}) is one of single pictures; connect the video VAE that encoded the clip")
    held: list[Any] = [ratios[0](count) for count in range(1, 9)]
    ratio = held[1] - held[0]
    if held != [1 + ratio * count for count in range(8)]:
        raise ValueError(
            f"vae ({kind}) packs frames in blocks of its own; one is needed whose first latent frame holds one frame, "
            "and each other as many (Wan, Hunyuan, LTX, Cosmos, Mochi)"
        )
    if latent.is_nested:
        raise ValueError("latent_image holds several latents of different kinds; give the clip's alone")
    if latent.ndim != 5 or not latent.numel():
        raise ValueError(
            f"latent_image has the shape {tuple(latent.shape)}; (batch, channels, frames, height, width) of a clip is "
            "needed, as VAE Encode makes it with a video VAE"
        )
    if latent.shape[1] != vae.latent_channels:
        raise ValueError(
            f"latent_image has {latent.shape[1]} channels and vae {vae.latent_channels}; connect the VAE that encoded "
            "the clip"
        )
    return ratio


@contextmanager
def loaded(node: str, vae, shape, weights: bool) -> Iterator[Differentiable]:
    """The VAE loaded with room for the gradients; afterwards it is as before.

    ValueError before anything runs, and the host's out-of-memory error with what would help.
    """
    differentiable = Differentiable(vae.patcher, weights=weights)
    device, needed = differentiable.patcher.load_device, memory_needed(vae, shape, weights)
    log.info("%s: about %.2f GiB of memory for each picture", node, needed / 2**30)
    try:
        comfy.model_management.load_models_gpu([differentiable.patcher], memory_required=needed)
        free = comfy.model_management.get_free_memory(device)
        if needed > free:
            raise ValueError(
                f"about {needed / 2**30:.2f} GiB of memory are needed for the gradients of one picture and "
                f"{free / 2**30:.2f} are free; {LESS}"
            )
        yield differentiable
    except comfy.model_management.OOM_EXCEPTION as error:
        if not isinstance(error, torch.OutOfMemoryError):
            raise
        raise type(error)(f"{node}: the gradients do not fit into memory; {LESS}. ({error})") from error
    finally:
        comfy.model_management.load_models_gpu([vae.patcher])
        comfy.model_management.soft_empty_cache()


def memory_needed(vae, shape, weights: bool) -> float:
    """About how many bytes one picture's gradients take, and with `weights` the decoder's copy and its optimizer."""
    activations = ACTIVATIONS * vae.memory_used_decode((1, *shape[1:]), torch.float32)
    decoder = sum(weight.numel() for name, weight in vae.first_stage_model.named_parameters() if "encoder" not in name)
    return activations + 4 * 4 * decoder * weights  # a weight, its gradient and Adam's two moments, in float32


LESS = (
    "take a smaller picture, or crop source, mask and latent (Crop Image, Crop Mask, Crop Latent) to the mask with a "
    "margin and paste the result back; SteerPoissonBlend and SteerStitch need no gradients"
)
