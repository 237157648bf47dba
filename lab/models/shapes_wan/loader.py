"""Teaches ComfyUI's stock checkpoint loader Wan's transformer and encoder at toy size; for demo and tests only.

The tokenizer is the host's T5's, for it brings none of UMT5's.
"""

import comfy.ldm.wan.vae
import comfy.sd1_clip
import comfy.supported_models
import comfy.supported_models_base
import comfy.text_encoders.t5

from ..embedding_rows import expanded
from ..shapes_flux import loader as shapes_flux
from ..shapes_flux.loader import TEXT_WIDTH

TOKENS = 24  # the fewest a prompt is padded to; the longest caption has 19
ONE_OBJECT_TOKENS = 12
TEXT_CONFIG = {**shapes_flux.TEXT_CONFIG, "model_type": "umt5"}
SHIFT = 3.0  # of the noise levels, what Wan has for small pictures
WAN_CONFIG = {
    "model_type": "t2v",
    "patch_size": (1, 2, 2),
    "in_dim": 16,
    "out_dim": 16,
    "dim": 192,
    "ffn_dim": 768,
    "num_heads": 6,
    "num_layers": 5,
    "text_dim": TEXT_WIDTH,
    "cross_attn_norm": True,
}


class WanVAE(comfy.ldm.wan.vae.WanVAE):  # its name is told in messages
    """Wan's autoencoder as wide as its file says, which hosts of 0.3 take for the published width."""

    def load_state_dict(self, state_dict, *args, **kwargs):
        width = len(state_dict["decoder.head.0.gamma"])
        if width != self.encoder.dim:
            super().__init__(dim=width, z_dim=self.z_dim, temperal_downsample=self.temperal_downsample)
        return super().load_state_dict(state_dict, *args, **kwargs)


class ShapesUMT5Tokenizer(shapes_flux.ShapesT5Tokenizer):
    """The stock T5 tokenizer at this width, with less padding than Wan's 512."""

    def __init__(self, embedding_directory=None, tokenizer_data=None):
        super().__init__(embedding_directory=embedding_directory, tokenizer_data=tokenizer_data)
        self.min_length = TOKENS


class ShapesWanTokenizer(comfy.sd1_clip.SD1Tokenizer):
    """The tokenizer in the form the host's CLIP object takes."""

    def __init__(self, embedding_directory=None, tokenizer_data=None):
        super().__init__(embedding_directory, tokenizer_data or {}, clip_name="umt5xxl", tokenizer=ShapesUMT5Tokenizer)


class ShapesUMT5(comfy.sd1_clip.SDClipModel):
    """UMT5's encoder at toy size; as in Wan, padding is not read, and its context is zero."""

    def __init__(self, device="cpu", dtype=None, model_options=None):
        super().__init__(
            device=device,
            dtype=dtype,
            model_options=model_options or {},
            special_tokens={"end": 1, "pad": 0},
            model_class=comfy.text_encoders.t5.T5,
            enable_attention_masks=True,
            zero_out_masked=True,
            textmodel_json_config=dict(TEXT_CONFIG),
        )


class ShapesWanClip(comfy.sd1_clip.SD1ClipModel):
    """The text encoder in the form the host's CLIP object takes."""

    def __init__(self, device="cpu", dtype=None, model_options=None):
        super().__init__(device, dtype, model_options or {}, name="umt5xxl", clip_model=ShapesUMT5)


class ShapesWan(comfy.supported_models.WAN21_T2V):
    """Wan 2.1's text-to-video model at toy size, told by its width, with its own latent format."""

    unet_config = {"image_model": "wan2.1", "model_type": "t2v", "dim": WAN_CONFIG["dim"]}
    unet_extra_config = {"num_heads": WAN_CONFIG["num_heads"], "text_dim": TEXT_WIDTH}
    sampling_settings = {"shift": SHIFT}

    def process_clip_state_dict(self, state_dict):
        return super().process_clip_state_dict(expanded(state_dict))

    def clip_target(self, state_dict=None):
        return comfy.supported_models_base.ClipTarget(ShapesWanTokenizer, ShapesWanClip)


def register() -> None:
    """Make the host's loaders know it, before Wan's own; doing so again changes nothing."""
    known = comfy.supported_models.models
    if not any(model.__name__ == ShapesWan.__name__ for model in known):
        known.insert(0, ShapesWan)
        comfy.ldm.wan.vae.WanVAE = WanVAE
