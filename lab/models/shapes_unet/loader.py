"""Teaches ComfyUI's stock loaders the shapes checkpoint, its CLIP pair and T2I-Adapter; for the demo and tests only.

As a custom node pack it brings no node: importing it registers them. It works under any module name, so the folder
can be linked into `custom_nodes`.
"""

import comfy.sd1_clip
import comfy.supported_models
import comfy.supported_models_base

from ..embedding_rows import VOCABULARY, expanded

TEXT_WIDTH = 128
TEXT_CONFIG = {
    "hidden_size": TEXT_WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 512,
    "hidden_act": "quick_gelu",
    "max_position_embeddings": 77,
    "eos_token_id": 49407,
    "vocab_size": VOCABULARY,
}
# What the host detects from the checkpoint's UNet, plus the head size, which a state dict does not show.
UNET_CONFIG = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 64,
    "channel_mult": [1, 2],
    "num_res_blocks": [1, 1],
    "transformer_depth": [1, 1],
    "transformer_depth_output": [1, 1, 1, 1],
    "transformer_depth_middle": 1,
    "context_dim": TEXT_WIDTH,
    "use_linear_in_transformer": False,
    "use_spatial_transformer": True,
    "use_checkpoint": False,
    "legacy": False,
    "adm_in_channels": None,
    "num_heads": -1,
    "num_head_channels": 32,
}
# The host compares these exactly; the context width alone tells this model from every other.
DETECTED_BY = ("context_dim", "model_channels", "channel_mult", "use_linear_in_transformer", "adm_in_channels")

NODE_CLASS_MAPPINGS = {}


class ShapesTextTokenizer(comfy.sd1_clip.SDTokenizer):
    """The stock CLIP vocabulary. The width is what the host accepts textual inversions by."""

    def __init__(self, embedding_directory=None, tokenizer_data=None):
        super().__init__(
            embedding_directory=embedding_directory,
            tokenizer_data=tokenizer_data or {},
            embedding_size=TEXT_WIDTH,
            embedding_key="clip_l",
        )


class ShapesTokenizer(comfy.sd1_clip.SD1Tokenizer):
    """The tokenizer in the form the host's CLIP object takes."""

    def __init__(self, embedding_directory=None, tokenizer_data=None):
        super().__init__(embedding_directory, tokenizer_data or {}, tokenizer=ShapesTextTokenizer)


class ShapesTextEncoder(comfy.sd1_clip.SDClipModel):
    """CLIP's text encoder at toy size."""

    def __init__(self, device="cpu", dtype=None, model_options=None):
        super().__init__(
            device=device,
            dtype=dtype,
            model_options=model_options or {},
            return_projected_pooled=False,
            textmodel_json_config=dict(TEXT_CONFIG),
        )


class ShapesClip(comfy.sd1_clip.SD1ClipModel):
    """The text encoder in the form the host's CLIP object takes."""

    def __init__(self, device="cpu", dtype=None, model_options=None):
        super().__init__(device, dtype, model_options or {}, clip_model=ShapesTextEncoder)


class Shapes(comfy.supported_models.SD15):
    """SD1.x at toy size. The latent format is the stock SD15 one (0.18215): the VAE's own vae_scale makes up for it."""

    unet_config = {key: UNET_CONFIG[key] for key in DETECTED_BY}
    unet_extra_config = {key: UNET_CONFIG[key] for key in ("num_heads", "num_head_channels")}

    def process_clip_state_dict(self, state_dict):
        return super().process_clip_state_dict(expanded(state_dict))

    def clip_target(self, state_dict=None):
        return comfy.supported_models_base.ClipTarget(ShapesTokenizer, ShapesClip)


def register() -> None:
    """Make the host's loaders know it; doing so again, under whatever module name, changes nothing."""
    known = comfy.supported_models.models
    if not any(model.__name__ == Shapes.__name__ for model in known):
        known.append(Shapes)


register()
