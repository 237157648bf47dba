"""Texts as a batch, models with random weights, one run of a sampler, and pictures as bytes, in the host."""

import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from unittest import mock

import comfy.model_management as management
import comfy.model_patcher
import comfy.samplers
import numpy as np
import torch
from comfy.ldm.modules.attention import attention_pytorch


def encode_texts(clip, texts: list[str]):
    """One conditioning with a row for each text."""
    rows = [clip.encode_from_tokens(clip.tokenize(text), return_pooled=True) for text in texts]
    return [[torch.cat([cond for cond, _ in rows]), {"pooled_output": torch.cat([pooled for _, pooled in rows])}]]


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
    patcher = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
    return patcher(model.eval(), management.get_torch_device(), management.unet_offload_device())


def with_pytorch_attention(model):
    """A clone of the model with PyTorch's own attention: the host's default on GPUs, not on CPUs."""
    model = model.clone()
    options = model.model_options.setdefault("transformer_options", {})
    options["optimized_attention_override"] = lambda _, *args, **kwargs: attention_pytorch(*args, **kwargs)
    return model


def guider_of(model, positive, negative, cfg: float):
    """The host's CFGGuider."""
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(cfg)
    return guider


def sample(guider, sampler, sigmas, latent, mask=None, seed=0):
    """As SamplerCustomAdvanced runs it, from the noise of the seed."""
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(seed))
    return sample_noise(guider, sampler, sigmas, latent, noise, mask, seed)


def sample_noise(guider, sampler, sigmas, latent, noise, mask=None, seed=0):
    """The same from a given noise."""
    return guider.sample(noise, latent.clone(), sampler, sigmas, denoise_mask=mask, disable_pbar=True, seed=seed)


def in_turns(methods: dict, problems: list, counter):
    """(name, problem, what the method made of it, seconds, calls and rows by the counter), each method first in turn.

    The first problem comes once more before all, unseen: it warms up.
    """
    for turn, given in enumerate([problems[0], *problems]):
        for name in list(methods)[:: -1 if turn % 2 else 1]:
            started, calls, rows = time.perf_counter(), counter.calls, counter.rows
            made = methods[name](given)
            spent = {"seconds": time.perf_counter() - started, "calls": counter.calls - calls,
                     "rows": counter.rows - rows}  # fmt: skip
            if turn:
                yield name, given, made, spent


def to_bytes(picture) -> np.ndarray:
    """A picture as the VAE gives it, in 8 bits."""
    return (picture.clamp(0, 1) * 255).round().byte().numpy()
