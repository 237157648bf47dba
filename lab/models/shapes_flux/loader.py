"""Teaches ComfyUI's stock checkpoint loader Flux's transformer and T5's encoder at toy size; for demo and tests."""

import comfy.latent_formats
import comfy.sd1_clip
import comfy.supported_models
import comfy.supported_models_base
import comfy.text_encoders.flux
import comfy.text_encoders.t5

from ..embedding_rows import expanded

TEXT_WIDTH = 128
TOKENS = 20  # the fewest a prompt is padded to; the longest caption has 16
TEXT_CONFIG = {
    "d_model": TEXT_WIDTH,
    "d_kv": 32,
    "d_ff": 256,
    "num_heads": 4,
    "num_layers": 2,
    "dense_act_fn": "gelu_pytorch_tanh",
    "is_gated_act": True,
    "model_type": "t5",
    "vocab_size": 32128,
}
SHIFT = 0.5  # of the noise levels, as Flux's 1.15 at its sizes
FLUX_CONFIG = {
    "in_channels": 4,
    "out_channels": 4,
    "vec_in_dim": 8,  # no pooled text: the host gives zeros
    "context_in_dim": TEXT_WIDTH,
    "hidden_size": 192,
    "mlp_ratio": 3.0,
    "num_heads": 6,
    "depth": 3,
    "depth_single_blocks": 3,
    "axes_dim": [8, 12, 12],
    "theta": 100,
    "patch_size": 2,
    "qkv_bias": True,
    "guidance_embed": False,
}


# What the host detects from a file and compares exactly; the rest it takes for Flux's own, or is told here.
DETECTED_BY = ("in_channels", "vec_in_dim", "guidance_embed")


class ShapesT5Tokenizer(comfy.text_encoders.flux.T5XXLTokenizer):
    """The stock T5 tokenizer at this width, with less padding than Flux's 256."""

    def __init__(self, embedding_directory=None, tokenizer_data=None):
        super().__init__(embedding_directory=embedding_directory, tokenizer_data=tokenizer_data or {})
        self.embedding_size, self.min_length = TEXT_WIDTH, TOKENS


class ShapesFluxTokenizer(comfy.sd1_clip.SD1Tokenizer):
    """The tokenizer in the form the host's CLIP object takes."""

    def __init__(self, embedding_directory=None, tokenizer_data=None):
        super().__init__(embedding_directory, tokenizer_data or {}, clip_name="t5xxl", tokenizer=ShapesT5Tokenizer)


class ShapesT5(comfy.sd1_clip.SDClipModel):
    """T5's encoder at toy size; as in Flux, padding is read too."""

    def __init__(self, device="cpu", dtype=None, model_options=None):
        super().__init__(
            device=device,
            dtype=dtype,
            model_options=model_options or {},
            special_tokens={"end": 1, "pad": 0},
            model_class=comfy.text_encoders.t5.T5,
            textmodel_json_config=dict(TEXT_CONFIG),
        )


class ShapesFluxClip(comfy.sd1_clip.SD1ClipModel):
    """The text encoder in the form the host's CLIP object takes."""

    def __init__(self, device="cpu", dtype=None, model_options=None):
        super().__init__(device, dtype, model_options or {}, name="t5xxl", clip_model=ShapesT5)


class ShapesFlux(comfy.supported_models.Flux):
    """Flux at toy size, undistilled (it needs cfg), in the latents of the shapes checkpoint's VAE."""

    unet_config = {"image_model": "flux"} | {key: FLUX_CONFIG[key] for key in DETECTED_BY}
    unet_extra_config = {key: value for key, value in FLUX_CONFIG.items() if key not in DETECTED_BY}
    sampling_settings = {"shift": SHIFT}
    latent_format = comfy.latent_formats.SD15

    def process_clip_state_dict(self, state_dict):
        return super().process_clip_state_dict(expanded(state_dict))

    def clip_target(self, state_dict=None):
        return comfy.supported_models_base.ClipTarget(ShapesFluxTokenizer, ShapesFluxClip)


def register() -> None:
    """Make the host's loaders know it, before Flux's own; doing so again changes nothing."""
    known = comfy.supported_models.models
    if not any(model.__name__ == ShapesFlux.__name__ for model in known):
        known.insert(0, ShapesFlux)
