"""Models of the host's own classes with random weights: small ones, and ones of the sizes that people run."""

import sys
from collections.abc import Callable
from contextlib import nullcontext
from unittest import mock

import comfy.model_management as management
import comfy.model_patcher
import comfy.sd
import comfy.supported_models
import torch
from comfy.ldm.flux.model import FluxParams
from comfy.ldm.models.autoencoder import AutoencoderKL

from ..models.shapes_unet.loader import UNET_CONFIG


def tiny_sdxl(seed=0):
    """A model of SDXL's structure (pooled text and sizes, two transformers a block) with random weights."""
    return tiny_model(
        comfy.supported_models.SDXL,
        {**UNET_CONFIG, "transformer_depth": [0, 2], "transformer_depth_output": [0, 0, 2, 2],
         "transformer_depth_middle": 2, "use_linear_in_transformer": True, "num_classes": "sequential",
         "adm_in_channels": 2816},
        seed=seed,
    )  # fmt: skip


def tiny_flux(seed=0):
    """A model of Flux's structure (blocks that add to what they are given in place) with random weights."""
    newer = {"txt_ids_dims": []} if "txt_ids_dims" in FluxParams.__dataclass_fields__ else {}
    return tiny_model(
        comfy.supported_models.Flux,
        {"image_model": "flux", "in_channels": 16, "out_channels": 16, "vec_in_dim": 32, "context_in_dim": 48,
         "hidden_size": 64, "mlp_ratio": 2.0, "num_heads": 2, "depth": 2, "depth_single_blocks": 2,
         "axes_dim": [8, 12, 12], "theta": 10000, "patch_size": 2, "qkv_bias": True, "guidance_embed": True, **newer},
        seed=seed,
    )  # fmt: skip


def tiny_model(kind, unet_config, weights=None, seed=0):
    """A model of one of the host's kinds with random weights; `weights` is what the host tells its noise law by."""
    config = kind(unet_config)
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model(weights or {}, "")
    draw_weights(model.diffusion_model, seed)
    return patcher_of(model)


def draw_weights(module, seed):
    """Draws the module's weights, so that what goes through it keeps its size."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in module.state_dict().items():
        drawn = torch.randn(weight.shape, generator=generator) * (0.3 if weight.ndim < 2 else weight[0].numel() ** -0.5)
        weight.copy_(1.0 + 0.1 * drawn if "norm" in name and name.endswith("weight") else drawn)


def random_kl(channels=32, dtype=None, seed=0, latent=4):
    """A VAE of SD1.x's structure with random weights, which are of that size at 128 channels."""
    layers = {"double_z": True, "z_channels": latent, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": channels,
              "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0}  # fmt: skip
    config, generator, weights = {"ddconfig": layers, "embed_dim": latent}, torch.Generator().manual_seed(seed), {}
    for name, weight in AutoencoderKL(**config).state_dict().items():
        drawn = torch.randn(weight.shape, generator=generator)
        drawn = 0.1 * drawn if weight.ndim == 1 else drawn * weight[0].numel() ** -0.5
        weights[name] = 1.0 + drawn if "norm" in name and name.endswith("weight") else drawn
    vae = comfy.sd.VAE(sd=weights, config={"params": config}, dtype=dtype)
    vae.latent_channels = latent  # which the host reads off the weights only where it has no configuration
    return vae


def random_model(kind: type, unet: dict, dtype: torch.dtype):
    """A model of one of the host's kinds and of these sizes, with random weights; its answers are small."""
    config = kind(dict(unet))
    config.set_inference_dtype(dtype, None)
    prefix = "model.diffusion_model."
    weights = random_weights(lambda: config.get_model({}, "", "meta").diffusion_model, dtype)
    for name in ("out.2.weight", "final_layer.linear.weight"):
        if name in weights:
            weights[name] *= 0.1
    model = config.get_model({}, "")
    model.load_model_weights({prefix + name: weight for name, weight in weights.items()}, prefix, assign=True)
    return patcher_of(model)


def random_weights(make: Callable[[], torch.nn.Module], dtype=torch.float32) -> dict[str, torch.Tensor]:
    """Weights for what `make()` makes, drawn so that what goes through keeps about its size."""
    # layers that wait for the weights of a file do not tell their shapes
    lazily = sys.modules.get("comfy.memory_management")
    with torch.device("meta"), mock.patch.object(lazily, "aimdo_enabled", False) if lazily else nullcontext():
        shapes = make().state_dict()
    device, weights = management.get_torch_device(), {}
    generator = torch.Generator(device).manual_seed(0)
    for name, each in shapes.items():
        if each.ndim < 2 and each.is_floating_point():
            weights[name] = torch.full(each.shape, float(name.endswith(("weight", "scale"))), dtype=dtype)
        elif each.is_floating_point():
            drawn = torch.empty(each.shape, dtype=dtype, device=device)
            weights[name] = drawn.normal_(0, each[0].numel() ** -0.5, generator=generator).cpu()
    return weights


def patcher_of(model):
    """The model as the host's loaders give it: in a ModelPatcher, on newer hosts of another name."""
    patcher = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
    return patcher(model.eval(), management.get_torch_device(), management.unet_offload_device())
