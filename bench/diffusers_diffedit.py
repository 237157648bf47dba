"""diffusers' own DiffEdit, StableDiffusionDiffEditPipeline, on the shapes checkpoint."""

import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler, StableDiffusionDiffEditPipeline

from ..lab.models.shapes_unet.diffusers_bridge import LATENT_SCALE, SCHEDULER
from ..lab.models.shapes_unet.diffusers_bridge import load as load_bridge
from .turns import to_bytes


def load_pipeline() -> StableDiffusionDiffEditPipeline:
    """On the shapes checkpoint's weights; it is to be given latents and embeddings, as the nodes are."""
    bridge, settings = load_bridge(), {**SCHEDULER, "set_alpha_to_one": False, "steps_offset": 1}
    pipeline = StableDiffusionDiffEditPipeline(
        vae=bridge.vae, unet=bridge.unet, scheduler=DDIMScheduler(**settings),
        inverse_scheduler=DDIMInverseScheduler(**settings), text_encoder=None, tokenizer=None, safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def published(pipeline, given: dict, cfg: float, inverted_at: float) -> dict:
    """Its three steps at its defaults but for the inversion's cfg; the mask at the picture's size."""
    source, target, empty = (cond[0][0] for cond in given["conds"])
    z, generator = given["latent"] * LATENT_SCALE, torch.Generator().manual_seed(given["index"])
    mask = pipeline.generate_mask(
        image=z, source_prompt_embeds=source, target_prompt_embeds=target, source_negative_prompt_embeds=empty,
        target_negative_prompt_embeds=empty, generator=generator,
    )  # fmt: skip
    levels = pipeline.invert(
        image=z, prompt_embeds=source, negative_prompt_embeds=empty, guidance_scale=inverted_at
    ).latents
    result = pipeline(
        mask_image=mask.copy(), image_latents=levels, prompt_embeds=target, negative_prompt_embeds=empty,
        guidance_scale=cfg, output_type="latent",
    ).images  # fmt: skip
    decoded = pipeline.vae.decode(result / pipeline.vae.config.scaling_factor).sample[0]
    return {"picture": to_bytes(decoded.permute(1, 2, 0) / 2 + 0.5), "change": (result - z) / LATENT_SCALE,
            "mask": mask[0].repeat(8, 0).repeat(8, 1) > 0}  # fmt: skip
