"""Texts as a batch, and one run of a sampler, in the host."""

import torch


def encode_texts(clip, texts: list[str]):
    """One conditioning with a row for each text."""
    rows = [clip.encode_from_tokens(clip.tokenize(text), return_pooled=True) for text in texts]
    return [[torch.cat([cond for cond, _ in rows]), {"pooled_output": torch.cat([pooled for _, pooled in rows])}]]


def sample(guider, sampler, sigmas, latent, mask=None, seed=0):
    """As SamplerCustomAdvanced runs it, from the noise of the seed."""
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(seed))
    return sample_noise(guider, sampler, sigmas, latent, noise, mask, seed)


def sample_noise(guider, sampler, sigmas, latent, noise, mask=None, seed=0):
    """The same from a given noise."""
    return guider.sample(noise, latent.clone(), sampler, sigmas, denoise_mask=mask, disable_pbar=True, seed=seed)
