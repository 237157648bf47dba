"""What is asked of the inputs of nodes, guiders and samplers before the first model call; each failure says why."""

from inspect import getclosurevars, isfunction

import comfy.model_management
import comfy.sample
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.model_sampling import CONST
from torch import Tensor
from torch.nn import GroupNorm

from ...samplers.core import check_values, noise_levels
from ...samplers.masks import check_mask
from .masks import fitted_noise_mask


def samples_of(model, latent: dict) -> Tensor:
    """The samples of a LATENT as the host fits them to the model; ValueError for what is no batch of latents."""
    samples = latent["samples"]
    if samples.is_nested:
        raise ValueError("latent_image holds several latents of different kinds; give the picture's alone")
    if samples.ndim < 3:
        raise ValueError(
            f"latent_image has the shape {tuple(samples.shape)}; (batch, channels, height, width) is needed"
        )
    return comfy.sample.fix_empty_latent_channels(model, samples)


def check_latent(model, latent: Tensor, shapes=None) -> None:
    """ValueError unless the latent is finite, with the model's dimensions and channels. Packs are not looked into."""
    dimensions, channels = model.latent_format.latent_dimensions, model.latent_format.latent_channels
    pack = latent.is_nested or (shapes is not None and len(shapes) > 1)
    if pack and dimensions == 2:
        raise ValueError("latent_image is a pack of several latents, and the model works on single pictures")
    if not pack and (latent.ndim != dimensions + 2 or not latent.numel()):
        sides = ("length",) if dimensions == 1 else ("frames", "height", "width")[-dimensions:]
        raise ValueError(
            f"latent_image has the shape {tuple(latent.shape)}, and the model works on (batch, {channels}, "
            f"{', '.join(sides)}); encode the picture with this model's own VAE"
        )
    if not latent.is_nested:
        check_values("latent_image", latent)
    # an all-zero latent is the host's empty latent, which it fits to the model itself
    if not pack and latent.shape[1] != channels and latent.any():
        raise ValueError(
            f"latent_image has {latent.shape[1]} channels and the model works on {channels}; "
            "encode the picture with this model's own VAE"
        )


def check_given(model, sigmas: Tensor, latent: Tensor, mask: Tensor | None) -> None:
    """ValueError for what a guider cannot run on, before the host looks at it. A pack of latents is not looked into."""
    noise_levels(sigmas.tolist())
    check_latent(model, latent)
    fitted_noise_mask(mask, latent)


def check_ready(guider, sigmas: Tensor, latent: Tensor, noise: Tensor, mask: Tensor | None) -> None:
    """ValueError for what the guider's model cannot take, where the host is about to call its sampler."""
    model = guider.inner_model
    check_latent(model, latent, getattr(model, "latent_shapes", None))
    check_values("noise", noise)
    if noise.shape != latent.shape:
        raise ValueError(
            f"noise has the shape {tuple(noise.shape)} and latent_image {tuple(latent.shape)}; look at the node that "
            "made the noise, and whether latent_image has a batch_index of another batch"
        )
    if mask is not None:
        check_mask(mask)
    # an image-to-image model is of the host's class for flows, and its levels go beyond 1
    highest = max(1.0, float(model.model_sampling.sigma_max))
    if isinstance(model.model_sampling, CONST) and float(sigmas.max()) > highest + 1e-4:
        raise ValueError(
            f"the sigmas go up to {float(sigmas.max()):g}, and a rectified-flow model's to {highest:g}; make them with "
            "this model"
        )
    check_size(model.diffusion_model, latent)
    widths = text_widths(model.diffusion_model)
    for name, entries in guider.conds.items():
        for entry in entries:
            check_area(name, entry.get("area"), latent)
            for key, width in widths.items():
                check_text(name, getattr(entry["model_conds"].get(key), "cond", None), width)


def check_every_call(model_options: dict) -> None:
    """ValueError for a model with EasyCache or LazyCache, which answer some calls by what changed in earlier ones.

    For what calls a level again, goes up, differentiates the answer or looks into the layers.
    """
    if "easycache" in model_options.get("transformer_options", {}):
        raise ValueError(
            "the model has EasyCache or LazyCache, which answer some calls from earlier ones, as suits plain sampling "
            "alone; remove it for this node"
        )


def check_no_momentum(model_options: dict) -> None:
    """ValueError for a patch on guidance with momentum (APG), which adds up what guidance was in earlier calls.

    For what calls with other noise each time, or with two prompts in turn. The momentum is a variable of the patch's
    function.
    """
    before, after, instead = (model_options.get(f"sampler_{hook}cfg_function") for hook in ("pre_", "post_", ""))
    for patch in filter(isfunction, (*(before or ()), *(after or ()), instead)):
        momentum = getclosurevars(patch).nonlocals.get("momentum", 0.0)
        if momentum:
            raise ValueError(
                f"the model has a patch on guidance (such as APG) whose momentum is {momentum}, which adds guidance "
                "of earlier calls, and here those are at other noise or for the other prompt; set its momentum to 0"
            )


def check_size(network, latent: Tensor) -> None:
    """ValueError for a latent whose coarsest level is a single position, where a UNet has groups of one channel.

    Torch does not normalise a single value.
    """
    if not isinstance(network, UNetModel) or max(latent.shape[-2:]) > 2 ** (len(network.channel_mult) - 1):
        return
    norms = (layer for layer in network.modules() if isinstance(layer, GroupNorm))
    if any(norm.num_channels == norm.num_groups for norm in norms):
        height, width = latent.shape[-2:]
        raise ValueError(
            f"latent_image is {width}x{height}, too small for this model, which normalises each of its channels over "
            "the picture; use a larger picture"
        )


def check_answer(x: Tensor, denoised: Tensor, sigma: Tensor) -> None:
    """ValueError for a prediction with NaN or infinite values: what usually makes them, and at which level."""
    # a finite sum has finite terms only, and costs less to look at
    if torch.isfinite(denoised.sum(dtype=torch.float32)) or torch.isfinite(denoised).all():
        return
    level = float(sigma.max())
    if not torch.isfinite(x).all():
        raise ValueError(
            f"the sampler came to sigma {level:.4g} with a latent that holds NaN or infinite values, while the model's "
            "answers had none; take another sampler (euler) or other sigmas"
        )
    raise ValueError(
        f"the model's answer at sigma {level:.4g} holds NaN or infinite values. Most often half precision (fp16) "
        "overflowed: start ComfyUI with --bf16-unet, --fp32-unet or --force-upcast-attention. Else the checkpoint, a "
        "LoRA or a ControlNet is broken or of another model, or a patch or an attention back-end does not suit this one"
    )


def check_area(name: str, area: tuple | None, latent: Tensor) -> None:
    """ValueError for the area of a conditioning, (sizes, offsets), that begins beyond the latent."""
    at, sides = (area or ())[len(area or ()) // 2 :], tuple(latent.shape[2:])
    if any(place >= side for place, side in zip(at, sides, strict=False)):
        raise ValueError(
            f"{name} has an area that begins at {tuple(at)} (down, right), outside of the latent of {sides}; set the "
            "area for the size that is sampled"
        )


def check_text(name: str, text: Tensor | None, width: int) -> None:
    """ValueError unless the text, as the model gets it, is finite and as wide as the model takes it."""
    if text is None:
        return
    if text.shape[-1] != width:
        raise ValueError(
            f"{name} is a text that was encoded {text.shape[-1]} wide, and the model takes {width}; encode it with the "
            "text encoder of this model"
        )
    check_values(name, text)


def text_widths(network) -> dict[str, int]:
    """How wide a model takes its text and what is pooled of it, by the host's name; of UNets, where it can be told."""
    if not isinstance(network, UNetModel):
        return {}
    keys = (layer.in_features for name, layer in network.named_modules() if name.endswith("attn2.to_k"))
    pooled = network.label_emb.modules() if network.num_classes == "sequential" else ()
    pooled = (layer.in_features for layer in pooled if hasattr(layer, "in_features"))
    widths = {"c_crossattn": next(keys, None), "y": next(pooled, None)}
    return {key: width for key, width in widths.items() if width is not None}


def free_ram() -> float:
    """How many bytes of memory are free, not on the GPU."""
    return comfy.model_management.get_free_memory(torch.device("cpu"))
