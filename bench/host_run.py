"""Texts as a batch, one run of a sampler, and pictures as bytes, in the host."""

import time

import comfy.samplers
import numpy as np
import torch
from comfy.ldm.modules.attention import attention_pytorch


def encode_texts(clip, texts: list[str]):
    """One conditioning with a row for each text."""
    rows = [clip.encode_from_tokens(clip.tokenize(text), return_pooled=True) for text in texts]
    return [[torch.cat([cond for cond, _ in rows]), {"pooled_output": torch.cat([pooled for _, pooled in rows])}]]


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
