"""CLIP's two towers in the host: the embeddings of texts and pictures."""

from math import isqrt

import comfy.clip_model
import torch
from torch import Tensor

from ..picture_inputs import check_picture
from .text import check_writable


def embedded(clip_vision, tower, pictures: Tensor) -> Tensor:
    """Square pictures (n, 3, size, size) in 0..1 to embeddings (n, width), with gradients."""
    return _seen(clip_vision, tower, pictures, -2)[2].float()


def states(clip_vision, tower, pictures: Tensor, layer: int) -> Tensor:
    """The same to the states (n, tokens, width) behind a layer, 1 the first, row by row, without the class token."""
    hidden = _seen(clip_vision, tower, pictures, layer - 1)[1].float()
    return hidden[:, hidden.shape[1] - isqrt(hidden.shape[1]) ** 2 :]  # what is beside the square comes first


def check_layer(clip_vision, layer: int) -> None:
    """ValueError unless the tower has that layer, and tokens that are a square."""
    vision = getattr(clip_vision.model, "vision_model", clip_vision.model)
    encoder = getattr(vision, "encoder", None)
    layers = getattr(encoder, "layers", getattr(encoder, "layer", None))
    if layers is None or getattr(clip_vision, "model_type", "") == "siglip2_vision_model":
        raise ValueError(
            f"clip_vision is a {type(clip_vision.model).__name__} whose layers cannot be read; load a CLIP vision "
            "model (CLIP-ViT-L, -H or -bigG), SigLIP or DINOv2"
        )
    if layer > len(layers):
        raise ValueError(f"layer is {layer} and clip_vision has {len(layers)} layers; 2 to 4 are early ones")


def _seen(clip_vision, tower, pictures: Tensor, layer: int) -> tuple:
    """What the vision model returns of square pictures in 0..1, with the states behind this layer."""
    mean, std = (
        torch.tensor(values, device=pictures.device).view(3, 1, 1)
        for values in (clip_vision.image_mean, clip_vision.image_std)
    )
    pixels = (pictures - mean) / std
    return tower(lambda: clip_vision.model(pixel_values=pixels, intermediate_output=layer))


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
    fitting = [weight for weight in weights if pooled is not None and weight.shape[1] == pooled.shape[-1]]
    if not fitting:
        raise ValueError(
            f"clip ({type(clip.cond_stage_model).__name__}) pools its text into "
            f"{'nothing' if pooled is None else f'width {pooled.shape[-1]}'}, which is no CLIP text tower's; load a "
            "single CLIP with CLIPLoader (clip_l.safetensors)"
        )
    return fitting[0].float().cpu()


def image_target(clip_vision, image: Tensor) -> Tensor:
    """The embeddings (batch, width) of pictures (batch, h, w, 3 or 4), each cropped to its middle square."""
    check_picture("image", image, alpha=True)
    return clip_vision.encode_image(image)["image_embeds"].float().cpu()
