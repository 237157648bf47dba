"""Tiny transformers of every family with random weights, made by the host's own classes.

What their layers look like is written here once more, in numbers: where the text and the picture are among the columns.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from inspect import signature
from itertools import islice, product
from math import prod
from string import ascii_lowercase
from types import SimpleNamespace
from unittest import mock

import comfy.ldm.chroma.model
import comfy.ldm.chroma_radiance.model
import comfy.ldm.flux.layers
import comfy.ldm.flux.model
import comfy.ldm.hunyuan_video.model
import comfy.supported_models
import pytest
import torch

from ..attention.tokens import Prompt
from ..attention.words import Stream, Token
from ..lab.comfy.random_models import tiny_model
from ..lab.comfy.runs import noise_of

TEXT = 11  # tokens
WIDTH = 48  # of the text
PICTURE, VIDEO = (1, 16, 7, 10), (1, 16, 2, 6, 10)


def numbered(*names: str) -> tuple[str, ...]:
    """The first two of each."""
    return tuple(f"{name}.{number}" for name in names for number in (0, 1))


def cross(blocks: str, layer: str) -> tuple[str, ...]:
    return tuple(f"{name}.{layer}" for name in numbered(blocks))


STREAMS = numbered("double_blocks", "single_blocks")
SHARED = {"in_channels": 16, "out_channels": 16, "vec_in_dim": 32, "context_in_dim": WIDTH, "hidden_size": 64,
          "mlp_ratio": 2.0, "num_heads": 2, "depth": 2, "depth_single_blocks": 2, "axes_dim": [8, 12, 12],
          "theta": 10000, "patch_size": 2, "qkv_bias": True}  # fmt: skip
FLUX = {**SHARED, "image_model": "flux", "guidance_embed": True, "txt_ids_dims": []}
FLUX_2 = {**FLUX, "image_model": "flux2", "in_channels": 128, "out_channels": 128, "patch_size": 1, "vec_in_dim": None,
          "axes_dim": [8, 8, 8, 8], "txt_ids_dims": [3], "global_modulation": True, "mlp_silu_act": True,
          "ops_bias": False, "qkv_bias": False}  # fmt: skip
LONGCAT = {**FLUX, "vec_in_dim": None, "guidance_embed": False, "txt_ids_dims": [1, 2]}
CHROMA = {**SHARED, "image_model": "chroma", "txt_ids_dims": [], "in_channels": 64, "out_channels": 64, "in_dim": 64,
          "out_dim": 64, "hidden_dim": 64, "n_layers": 2}  # fmt: skip
HUNYUAN = {
    **SHARED,
    "image_model": "hunyuan_video",
    "guidance_embed": True,
    "patch_size": [1, 2, 2],
    "byt5": False,
    "meanflow": False,
    "use_cond_type_embedding": False,
    "vision_in_dim": None,
    "meanflow_sum": False,
}
HUNYUAN_2 = {**HUNYUAN, "byt5": True, "vec_in_dim": None, "guidance_embed": False}
HUNYUAN_IMAGE = {**HUNYUAN_2, "patch_size": [1, 1], "axes_dim": [16, 16], "in_channels": 64, "out_channels": 64}
HUNYUAN_15 = {**HUNYUAN_2, "patch_size": [1, 1, 1], "in_channels": 65, "out_channels": 32, "vision_in_dim": 40,
              "use_cond_type_embedding": True}  # fmt: skip
SD3 = {"input_size": None, "in_channels": 16, "depth": 2, "adm_in_channels": 32, "qkv_bias": True, "num_patches": 256,
       "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": WIDTH, "out_features": 128}},
       "pos_embed_max_size": 16, "pos_embed_scaling_factor": None}  # fmt: skip
QWEN = {"image_model": "qwen_image", "patch_size": 2, "in_channels": 64, "out_channels": 16, "num_layers": 2,
        "attention_head_dim": 32, "num_attention_heads": 2, "joint_attention_dim": WIDTH,
        "axes_dims_rope": (8, 12, 12)}  # fmt: skip
LUMINA = {"image_model": "lumina2", "patch_size": 2, "in_channels": 16, "dim": 64, "n_layers": 2, "n_heads": 2,
          "n_refiner_layers": 1, "qk_norm": True, "cap_feat_dim": WIDTH, "axes_dims": [8, 12, 12],
          "axes_lens": [300, 512, 512], "multiple_of": 32}  # fmt: skip
Z_IMAGE = {**LUMINA, "dim": 256, "n_heads": 8, "pad_tokens_multiple": 32, "z_image_modulation": True,
           "time_scale": 1000.0}  # fmt: skip
HIDREAM = {"image_model": "hidream", "patch_size": 2, "in_channels": 16, "out_channels": 16, "num_layers": 1,
           "num_single_layers": 1, "attention_head_dim": 32, "num_attention_heads": 2, "caption_channels": [WIDTH, 40],
           "text_emb_dim": 32, "num_routed_experts": 2, "num_activated_experts": 1, "axes_dims_rope": (8, 12, 12),
           "llama_layers": [0, 1]}  # fmt: skip
AURA = {"in_channels": 4, "out_channels": 4, "dim": 64, "n_layers": 2, "n_double_layers": 1, "n_heads": 2,
        "global_conddim": 32, "cond_seq_dim": WIDTH, "max_seq": 256}  # fmt: skip
OMNIGEN = {"image_model": "omnigen2", "patch_size": 2, "in_channels": 16, "hidden_size": 96, "num_layers": 2,
           "num_refiner_layers": 1, "num_attention_heads": 4, "num_kv_heads": 2, "multiple_of": 32,
           "axes_dim_rope": (8, 8, 8), "axes_lens": (300, 512, 512)}  # fmt: skip
BOOGU = {**OMNIGEN, "image_model": "boogu", "num_layers": 1, "num_double_stream_layers": 1,
         "instruction_feat_dim": WIDTH}  # fmt: skip
KREA = {"image_model": "krea2", "features": 64, "tdim": 32, "txtdim": 24, "heads": 2, "kvheads": 1, "multiplier": 2,
        "layers": 2, "txtlayers": 2, "txtheads": 2, "txtkvheads": 2}  # fmt: skip
WAN = {"image_model": "wan2.1", "model_type": "t2v", "dim": 64, "ffn_dim": 128, "num_heads": 2, "num_layers": 2,
       "text_dim": WIDTH, "in_dim": 16, "out_dim": 16}  # fmt: skip
LTXV = {"image_model": "ltxv", "in_channels": 128, "cross_attention_dim": 64, "attention_head_dim": 32,
        "num_attention_heads": 2, "caption_channels": WIDTH, "num_layers": 2}  # fmt: skip
COSMOS = {"image_model": "cosmos_predict2", "max_img_h": 240, "max_img_w": 240, "max_frames": 128, "in_channels": 16,
          "out_channels": 16, "patch_spatial": 2, "patch_temporal": 1, "model_channels": 64, "num_blocks": 2,
          "num_heads": 2, "crossattn_emb_channels": 1024, "pos_emb_cls": "rope3d", "pos_emb_learnable": True,
          "pos_emb_interpolation": "crop", "use_adaln_lora": True, "adaln_lora_dim": 16}  # fmt: skip
KANDINSKY = {"image_model": "kandinsky5", "in_visual_dim": 16, "out_visual_dim": 16, "in_text_dim": WIDTH,
             "in_text_dim2": 32, "time_dim": 32, "model_dim": 64, "ff_dim": 128, "visual_embed_dim": 132,
             "num_text_blocks": 1, "num_visual_blocks": 2, "axes_dims": (8, 12, 12)}  # fmt: skip
MAGE = {"image_model": "mage_flow", "num_layers": 2, "attention_head_dim": 32, "num_attention_heads": 2,
        "joint_attention_dim": WIDTH, "axes_dims_rope": (8, 12, 12)}  # fmt: skip
JOY = {"image_model": "joyimage", "hidden_size": 64, "num_attention_heads": 2, "text_dim": WIDTH, "num_layers": 2,
       "rope_dim_list": [8, 12, 12]}  # fmt: skip
IDEOGRAM = {"image_model": "ideogram4", "num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 32,
            "intermediate_size": 128, "adaln_dim": 32, "llm_features_dim": WIDTH,
            "mrope_section": (6, 5, 5)}  # fmt: skip
PIXELDIT = {"image_model": "pixeldit_t2i", "num_groups": 2, "hidden_size": 64, "pixel_hidden_size": 8,
            "pixel_attn_hidden_size": 64, "pixel_num_groups": 2, "patch_depth": 2, "pixel_depth": 1, "patch_size": 4,
            "txt_embed_dim": WIDTH}  # fmt: skip
PID = {**PIXELDIT, "image_model": "pid", "lq_hidden_dim": 32, "lq_num_res_blocks": 1, "sr_scale": 2,
       "latent_spatial_down_factor": 8}  # fmt: skip
RADIANCE = {**CHROMA, "image_model": "chroma_radiance", "in_channels": 3, "out_channels": 3, "patch_size": 4,
            "nerf_hidden_size": 16, "nerf_mlp_ratio": 2, "nerf_depth": 2, "nerf_max_freqs": 4, "nerf_tile_size": 0,
            "nerf_final_head_type": "conv", "nerf_embedder_dtype": torch.float32, "use_x0": False,
            "use_sequential_txt_ids": False}  # fmt: skip
Z_PIXELS = {**Z_IMAGE, "image_model": "zimage_pixel", "in_channels": 3, "patch_size": 4, "decoder_hidden_size": 32,
            "decoder_num_res_blocks": 1, "decoder_max_freqs": 4}  # fmt: skip
MOCHI = {"image_model": "mochi_preview", "depth": 2, "patch_size": 2, "num_heads": 2, "hidden_size_x": 64,
         "hidden_size_y": 32, "mlp_ratio_x": 192.0, "learn_sigma": False, "in_channels": 12, "qk_norm": True,
         "qkv_bias": False, "out_bias": True, "use_t5": True, "t5_feat_dim": WIDTH,
         "timestep_scale": 1000.0}  # fmt: skip
COGVIDEO = {"image_model": "cogvideox", "num_attention_heads": 2, "attention_head_dim": 32, "time_embed_dim": 32,
            "text_embed_dim": WIDTH, "num_layers": 2, "use_rotary_positional_embeddings": True}  # fmt: skip
COSMOS_1 = {"image_model": "cosmos", "max_img_h": 240, "max_img_w": 240, "max_frames": 128, "in_channels": 16,
            "out_channels": 16, "patch_spatial": 2, "patch_temporal": 1, "model_channels": 64, "num_blocks": 2,
            "num_heads": 2, "block_config": "FA-CA-MLP", "crossattn_emb_channels": 1024, "pos_emb_cls": "rope3d",
            "block_x_format": "THWBD", "affline_emb_norm": True, "use_adaln_lora": True, "adaln_lora_dim": 16,
            "extra_per_block_abs_pos_emb": True, "extra_per_block_abs_pos_emb_type": "learnable"}  # fmt: skip
PARAMETERS = {
    "flux": comfy.ldm.flux.model.FluxParams,
    "chroma": comfy.ldm.chroma.model.ChromaParams,
    "chroma_radiance": comfy.ldm.chroma_radiance.model.ChromaRadianceParams,
    "hunyuan_video": comfy.ldm.hunyuan_video.model.HunyuanVideoParams,
}


@dataclass(frozen=True)
class Tiny:
    """A family, and where things are in its layers."""

    name: str
    kind: str
    """The host's class of supported models."""
    config: dict
    layers: tuple[str, ...]
    picture: int | None = TEXT
    """The column that the picture begins at; None where the columns are the text alone."""
    columns: int = TEXT + 20
    words: int = 0
    """The column that the words begin at."""
    own: int = TEXT
    """How many words the prompt has, with those of further encoders."""
    left_out: int = 0
    """How many of the conditioning's columns the network does not get."""
    shape: tuple[int, ...] = PICTURE
    """Of a latent; its sides are no multiple of the patch where the network pads."""
    grid: tuple[int, ...] = (4, 5)
    width: int = WIDTH
    conds: Callable[[], dict] = dict
    """What else the conditioning has."""
    mixed: bool = False
    """Whether text or picture go through layers of their own before the first block."""

    def __str__(self) -> str:
        return self.name

    @property
    def positions(self) -> int:
        return prod(self.grid)

    @property
    def frames(self) -> int:
        return prod(self.grid[:-2])

    @property
    def clip(self) -> int:
        """How many frames a latent has: a patch may be of several."""
        return self.shape[2] if len(self.shape) == 5 else 1

    def model(self):
        """A model of its own; skips where this host has none."""
        return _models(self.name).clone()

    def conditioning(self, seed: int = 1, **also) -> list:
        more = {"pooled_output": noise_of((1, 32), seed), **self.conds(), **also}
        return [[noise_of((1, TEXT, self.width), seed), more]]

    @cached_property
    def prompt(self) -> Prompt:
        """A prompt of words of two letters, `aa` the first and `ab` the second."""
        words = islice(product(ascii_lowercase, ascii_lowercase), self.own)
        return Prompt("aa ab", (Stream("l", tuple(Token(f"{first}{second}</w>") for first, second in words)),))


@cache
def _models(name: str):
    return deeper(next(tiny for tiny in TINY if tiny.name == name))


def deeper(tiny: Tiny, more: dict | None = None):
    """A model of the family with more in its configuration."""
    supported = getattr(comfy.supported_models, tiny.kind, None)
    if supported is None:
        pytest.skip(f"this host has no {tiny.kind}")
    config = {**tiny.config, **(more or {})}
    parameters = PARAMETERS.get(config.get("image_model", ""))  # of which older hosts have fewer
    known = {"image_model", *(parameters.__dataclass_fields__ if parameters else config)}
    published = supported.unet_extra_config  # what the host does not read from weights
    sizes = {**published, **{key: value for key, value in config.items() if key in published}}
    with torch.inference_mode(), mock.patch.object(supported, "unet_extra_config", sizes):
        return tiny_model(supported, {key: value for key, value in config.items() if key in known})


def _reference() -> dict:
    return {"reference_latents": [noise_of((1, 16, 4, 6), 8)]}


def _mask(real: int = TEXT) -> dict:
    return {"attention_mask": torch.tensor([[1] * real + [0] * (TEXT - real)])}


def _glyphs() -> dict:
    return {"conditioning_byt5small": noise_of((1, 5, 1472), 9)}


def _vision(width: int) -> dict:
    features = noise_of((1, 7, width), 7)
    return {"clip_vision_output": SimpleNamespace(last_hidden_state=features, penultimate_hidden_states=features)}


# older hosts have HunyuanVideo's picture first
PICTURE_FIRST = "flipped_img_txt" in signature(comfy.ldm.flux.layers.DoubleStreamBlock.__init__).parameters


def _hunyuan(*args, text: int = TEXT, words: int = 0, positions: int = 20, **more) -> Tiny:
    picture, words = (0, words + positions) if PICTURE_FIRST else (text, words)
    return Tiny(*args, STREAMS, picture, text + positions, words, mixed=True, **more)


CLIP = {"grid": (2, 3, 5), "shape": VIDEO}
TEXT_ALONE = {"picture": None, "columns": TEXT, **CLIP}
TINY = (
    Tiny("Flux", "Flux", FLUX, STREAMS),
    Tiny("Flux Kontext", "Flux", FLUX, STREAMS, columns=TEXT + 20 + 6, conds=_reference),
    Tiny("Flux.2", "Flux2", FLUX_2, STREAMS, 512, 512 + 20, 512 - TEXT, shape=(1, 128, 4, 5)),
    Tiny("LongCat", "LongCatImage", LONGCAT, STREAMS),
    Tiny("Chroma", "Chroma", CHROMA, STREAMS),
    Tiny("Chroma Radiance", "ChromaRadiance", RADIANCE, STREAMS, shape=(1, 3, 14, 20)),
    Tiny("SD3", "SD3", SD3, numbered("joint_blocks")),
    Tiny("SD3.5 Medium", "SD3", {**SD3, "x_block_self_attn_layers": [0], "qk_norm": "rms"}, numbered("joint_blocks")),
    Tiny("Qwen-Image", "QwenImage", QWEN, numbered("transformer_blocks"), shape=(1, 16, 1, 7, 10), grid=(1, 4, 5)),
    Tiny("Qwen-Image-Edit", "QwenImage", QWEN, numbered("transformer_blocks"), columns=TEXT + 20 + 6,
         shape=(1, 16, 1, 7, 10), grid=(1, 4, 5),
         conds=lambda: {"reference_latents": [noise_of((1, 16, 1, 4, 6), 8)]}),
    Tiny("Mage-Flow", "MageFlow", MAGE, numbered("transformer_blocks"), columns=TEXT + 20 + 6, shape=(1, 128, 4, 5),
         conds=lambda: {"reference_latents": [noise_of((1, 128, 2, 3), 8)]}),
    Tiny("JoyImage", "JoyImage", JOY, numbered("double_blocks"), 0, 20 + 6 + TEXT, 20 + 6, shape=(1, 16, 1, 7, 10),
         grid=(1, 4, 5), conds=lambda: {"reference_latents": [noise_of((1, 16, 1, 4, 6), 8)]}, mixed=True),
    Tiny("Ideogram 4", "Ideogram4", IDEOGRAM, numbered("layers"), shape=(1, 128, 4, 5), conds=lambda: _mask(8)),
    Tiny("PixelDiT", "PixelDiTT2I", PIXELDIT, numbered("patch_blocks"), shape=(1, 3, 14, 20)),
    Tiny("PiD", "PiD", PID, numbered("patch_blocks"), shape=(1, 3, 14, 20),
         conds=lambda: {"lq_latent": noise_of((1, 16, 1, 2), 8), "degrade_sigma": torch.zeros(1)}),
    Tiny("Mochi", "GenmoMochi", MOCHI, numbered("blocks"), 0, 30 + 8, 30, 8, TEXT - 8, shape=(1, 12, 2, 6, 10),
         grid=(2, 3, 5), conds=lambda: _mask(8), mixed=True),
    Tiny("CogVideoX", "CogVideoX_T2V", COGVIDEO, numbered("blocks"), columns=TEXT + 30, **CLIP),
    Tiny("CogVideoX 1.5", "CogVideoX_T2V", {**COGVIDEO, "patch_size_t": 2}, numbered("blocks"), columns=TEXT + 30,
         shape=(1, 16, 3, 6, 10), grid=(2, 3, 5)),
    Tiny("Lumina 2", "Lumina2", LUMINA, numbered("layers"), conds=_mask, mixed=True),
    Tiny("Z-Image", "ZImage", Z_IMAGE, numbered("layers"), 32, 64, mixed=True),
    Tiny("Z-Image of pixels", "ZImagePixelSpace", Z_PIXELS, numbered("layers"), 32, 64, shape=(1, 3, 14, 20),
         mixed=True),
    _hunyuan("HunyuanVideo", "HunyuanVideo", HUNYUAN, positions=30, **CLIP),
    _hunyuan("HunyuanImage 2.1", "HunyuanImage21", HUNYUAN_IMAGE, text=TEXT + 5, shape=(1, 64, 4, 5), conds=_glyphs),
    _hunyuan("HunyuanVideo 1.5", "HunyuanVideo15", HUNYUAN_15, text=7 + 5 + TEXT, words=7 + 5, positions=30,
             shape=(1, 32, 2, 3, 5), grid=(2, 3, 5), conds=lambda: _glyphs() | _vision(40)),
    Tiny("HiDream", "HiDream", HIDREAM, ("double_stream_blocks.0", "single_stream_blocks.0"), 0, 20 + TEXT + 2 * 9, 20,
         TEXT + 2 * 9, conds=lambda: {"conditioning_llama3": noise_of((1, 2, 9, 40), 9)}),
    Tiny("AuraFlow", "AuraFlow", AURA, ("double_layers.0", "single_layers.0"), 8 + TEXT, 8 + TEXT + 20, 8,
         shape=(1, 4, 7, 10)),
    Tiny("OmniGen2", "Omnigen2", {**OMNIGEN, "text_feat_dim": WIDTH}, numbered("layers"), TEXT + 6, TEXT + 6 + 20,
         conds=lambda: _reference() | _mask(), mixed=True),
    Tiny("Boogu", "Boogu", BOOGU, ("double_stream_layers.0", "single_stream_layers.0"), conds=_mask, mixed=True),
    Tiny("Krea 2", "Krea2", KREA, numbered("blocks"), shape=(1, 16, 1, 7, 10), grid=(1, 4, 5), mixed=True),
    Tiny("Wan", "WAN21_T2V", WAN, cross("blocks", "cross_attn"),
         **{**TEXT_ALONE, "shape": (1, 16, 2, 7, 10), "grid": (2, 4, 5)}),
    Tiny("Wan with a picture", "WAN21_I2V", {**WAN, "model_type": "i2v", "in_dim": 36}, cross("blocks", "cross_attn"),
         conds=lambda: _vision(1280), **TEXT_ALONE),
    Tiny("Wan VACE", "WAN21_Vace", {**WAN, "model_type": "vace", "vace_layers": 1, "vace_in_dim": 96},
         tuple(f"{name}.cross_attn" for name in ("blocks.0", "vace_blocks.0", "blocks.1")), **TEXT_ALONE),
    Tiny("Wan Camera", "WAN22_Camera", {**WAN, "model_type": "camera_2.2", "in_dim": 36}, cross("blocks", "cross_attn"),
         **TEXT_ALONE),
    Tiny("Wan Camera with a picture", "WAN21_Camera", {**WAN, "model_type": "camera", "in_dim": 32},
         cross("blocks", "cross_attn"), conds=lambda: _vision(1280), **TEXT_ALONE),
    Tiny("Wan Animate", "WAN22_Animate", {**WAN, "model_type": "animate", "in_dim": 36, "num_layers": 2},
         cross("blocks", "cross_attn"), conds=lambda: _vision(1280), **TEXT_ALONE),
    Tiny("HuMo", "WAN21_HuMo", {**WAN, "model_type": "humo", "audio_token_num": 2}, cross("blocks", "cross_attn"),
         **TEXT_ALONE),
    Tiny("LTX-Video", "LTXV", LTXV, cross("transformer_blocks", "attn2"), conds=lambda: _mask(8),
         **{**TEXT_ALONE, "shape": (1, 128, 2, 3, 5)}),
    Tiny("Cosmos", "CosmosT2V", COSMOS_1, tuple(f"blocks.block{n}.blocks.1.block.attn" for n in (0, 1)), width=1024,
         **TEXT_ALONE),
    Tiny("Cosmos-Predict2", "CosmosT2IPredict2", COSMOS, cross("blocks", "cross_attn"), width=1024, **TEXT_ALONE),
    Tiny("Anima", "Anima", {**COSMOS, "image_model": "anima"}, cross("blocks", "cross_attn"), own=9, width=1024,
         conds=lambda: {"t5xxl_ids": torch.arange(5, 14), "t5xxl_weights": torch.ones(9)}, mixed=True,
         **{**TEXT_ALONE, "columns": 512}),
    Tiny("Kandinsky 5", "Kandinsky5", KANDINSKY, cross("visual_transformer_blocks", "cross_attention"), mixed=True,
         **TEXT_ALONE),
)  # fmt: skip
