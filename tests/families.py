"""Tiny models of the families that people run, with random weights, made by the host's own model and encoder classes.

Only the sizes are small: how they mix noise, what they are conditioned by, where they attend and what latents they
work on is the family's own.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import comfy.latent_formats
import comfy.sd
import comfy.sd1_clip
import comfy.sdxl_clip
import comfy.supported_models
import comfy.supported_models_base
import comfy.text_encoders.flux
import comfy.text_encoders.genmo
import comfy.text_encoders.sd2_clip
import comfy.text_encoders.sd3_clip
import node_helpers
import torch
from comfy.ldm.wan.vae import WanVAE
from torch import Tensor

from ..lab.comfy.random_models import draw_weights, random_kl, tiny_flux, tiny_model
from ..lab.comfy.runs import encode, noise_of
from ..lab.models.shapes_unet.loader import UNET_CONFIG
from .text_encoders import LLAMA, small_clip

WIDTH = 64  # of each text encoder
CLIP = {"hidden_size": WIDTH, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 128}
T5 = {"d_ff": 96, "d_kv": 24, "d_model": 48, "num_heads": 2, "num_layers": 2}
TINY = {"clip_l_model_config": CLIP, "clip_g_model_config": CLIP, "clip_h_model_config": CLIP,
        "t5xxl_model_config": T5}  # fmt: skip
V_BY_ITS_WEIGHTS = {"output_blocks.11.1.transformer_blocks.0.norm1.bias": torch.arange(4.0)}  # how the host tells v
UNET = {**UNET_CONFIG, "context_dim": WIDTH}


@dataclass(frozen=True)
class Family:
    """What a user of this family has loaded."""

    name: str
    model: Callable
    clip: Callable
    vae: Callable
    shape: tuple[int, ...]
    """Of a latent."""
    joined: Callable = lambda conditioning, latent: conditioning
    """The family's own further conditioning."""

    def __str__(self) -> str:
        return self.name

    def prompt(self, text: str) -> list:
        return self.joined(encode(self.clip(), text), self.picture())

    def picture(self) -> Tensor:
        """A latent to edit."""
        return noise_of(self.shape, 5)


def _clip(model, tokenizer, **sizes):
    target = comfy.supported_models_base.ClipTarget(tokenizer, model)
    clip = comfy.sd.CLIP(target, model_options={**TINY, **sizes})
    draw_weights(clip.cond_stage_model, 0)
    return clip


@cache
def _sd1_clip():
    return _clip(comfy.sd1_clip.SD1ClipModel, comfy.sd1_clip.SD1Tokenizer)


@cache
def _sd2_clip():
    return _clip(comfy.text_encoders.sd2_clip.SD2ClipModel, comfy.text_encoders.sd2_clip.SD2Tokenizer)


@cache
def _sdxl_clip():
    return _clip(comfy.sdxl_clip.SDXLClipModel, comfy.sdxl_clip.SDXLTokenizer)


@cache
def _sd3_clip():
    kind = comfy.text_encoders.sd3_clip.sd3_clip(clip_l=True, clip_g=True, t5=False)
    return _clip(kind, comfy.text_encoders.sd3_clip.SD3Tokenizer)


@cache
def _flux_clip():
    kind, small = comfy.text_encoders.flux.flux_clip(torch.float32), {**CLIP, "hidden_size": 32}
    return _clip(kind, comfy.text_encoders.flux.FluxTokenizer, clip_l_model_config=small)


@cache
def _t5():
    return _clip(comfy.text_encoders.genmo.mochi_te(torch.float32), comfy.text_encoders.genmo.MochiT5Tokenizer)


@cache
def _kl():
    return random_kl(32)


@cache
def _kl_16():
    return random_kl(32, latent=16)


def _wan_weights(width):
    vae = WanVAE(dim=width, z_dim=16, temperal_downsample=[False, True, True])
    draw_weights(vae, 0)
    for weights in vae.decoder.head[-1].state_dict().values():
        weights.mul_(0.4)  # its pictures lie between black and white
    return vae.state_dict()


@cache
def _wan_vae():
    try:
        return comfy.sd.VAE(sd=_wan_weights(8))
    except RuntimeError:  # older hosts (0.3) know the published width alone
        return comfy.sd.VAE(sd=_wan_weights(96))


@cache
def _sd1():
    return tiny_model(comfy.supported_models.SD15, UNET)


@cache
def _sd2():
    return tiny_model(comfy.supported_models.SD20, {**UNET, "use_linear_in_transformer": True}, V_BY_ITS_WEIGHTS)


class _ZeroTerminal(comfy.supported_models.SD20):
    sampling_settings = {"zsnr": True}


@cache
def _zero_terminal():
    return tiny_model(_ZeroTerminal, {**UNET, "use_linear_in_transformer": True}, V_BY_ITS_WEIGHTS)


@cache
def _sdxl():
    return tiny_model(
        comfy.supported_models.SDXL,
        {**UNET, "context_dim": 2 * WIDTH, "transformer_depth": [0, 2], "transformer_depth_output": [0, 0, 2, 2],
         "transformer_depth_middle": 2, "use_linear_in_transformer": True, "num_classes": "sequential",
         "adm_in_channels": WIDTH + 6 * 256},
    )  # fmt: skip


@cache
def _inpainting():
    return tiny_model(comfy.supported_models.SD15, {**UNET, "in_channels": 9})


@cache
def _instruct():
    return tiny_model(comfy.supported_models.SD15_instructpix2pix, {**UNET, "in_channels": 8})


@cache
def _sd3():
    config = {"input_size": None, "in_channels": 16, "depth": 2, "adm_in_channels": 2 * WIDTH, "qkv_bias": True,
              "context_embedder_config": {"target": "torch.nn.Linear",
                                          "params": {"in_features": 4096, "out_features": 128}},
              "num_patches": 256, "pos_embed_max_size": 16, "pos_embed_scaling_factor": None}  # fmt: skip
    return tiny_model(comfy.supported_models.SD3, config)


@cache
def _wan():
    config = {"image_model": "wan2.1", "model_type": "t2v", "dim": 64, "ffn_dim": 128, "num_heads": 2, "num_layers": 2,
              "text_dim": 48, "in_dim": 16, "out_dim": 16}  # fmt: skip
    return tiny_model(comfy.supported_models.WAN21_T2V, config)


@cache
def _flux():
    return tiny_flux()


@cache
def _qwen_image():
    config = {"image_model": "qwen_image", "num_layers": 2, "attention_head_dim": 32, "num_attention_heads": 2,
              "joint_attention_dim": LLAMA["hidden_size"], "axes_dims_rope": (8, 12, 12)}  # fmt: skip
    return tiny_model(comfy.supported_models.QwenImage, config)


@cache
def _z_image():
    config = {"image_model": "lumina2", "patch_size": 2, "in_channels": 16, "dim": 256, "n_layers": 2, "n_heads": 8,
              "n_kv_heads": 8, "n_refiner_layers": 1, "qk_norm": True, "cap_feat_dim": LLAMA["hidden_size"],
              "axes_dims": [8, 12, 12], "axes_lens": [64, 64, 64], "z_image_modulation": True,
              "pad_tokens_multiple": 32}  # fmt: skip
    return tiny_model(comfy.supported_models.ZImage, config)


@cache
def _qwen_clip():
    return small_clip("Qwen-Image")


@cache
def _z_image_clip():
    return small_clip("Z-Image")


def _with_hole(conditioning: list, latent: Tensor) -> list:
    """As the host's InpaintModelConditioning."""
    mask = torch.zeros(1, 1, *latent.shape[-2:])
    mask[..., 2:6, 2:6] = 1
    return node_helpers.conditioning_set_values(
        conditioning, {"concat_latent_image": latent * (1 - mask), "concat_mask": mask}
    )


def _with_picture(conditioning: list, latent: Tensor) -> list:
    """As the host's InstructPixToPixConditioning."""
    return node_helpers.conditioning_set_values(conditioning, {"concat_latent_image": latent})


ALL = (
    Family("SD1.x eps", _sd1, _sd1_clip, _kl, (1, 4, 8, 8)),
    Family("SD2.x v", _sd2, _sd2_clip, _kl, (1, 4, 8, 8)),
    Family("v, zero SNR", _zero_terminal, _sd2_clip, _kl, (1, 4, 8, 8)),
    Family("SDXL", _sdxl, _sdxl_clip, _kl, (1, 4, 8, 8)),
    Family("inpainting", _inpainting, _sd1_clip, _kl, (1, 4, 8, 8), _with_hole),
    Family("InstructPix2Pix", _instruct, _sd1_clip, _kl, (1, 4, 8, 8), _with_picture),
    Family("SD3", _sd3, _sd3_clip, _kl_16, (1, 16, 8, 8)),
    Family("Flux", _flux, _flux_clip, _kl_16, (1, 16, 8, 8)),
    Family("Qwen-Image", _qwen_image, _qwen_clip, _wan_vae, (1, 16, 1, 8, 8)),
    Family("Z-Image", _z_image, _z_image_clip, _kl_16, (1, 16, 8, 8)),
    Family("video (Wan)", _wan, _t5, _wan_vae, (1, 16, 2, 8, 8)),
)
NEWER = {"Qwen-Image": "QwenImage", "Z-Image": "ZImage"}
"""The host's class of families that not every host has."""
FAMILIES = tuple(each for each in ALL if hasattr(comfy.supported_models, NEWER.get(each.name, "SD15")))
