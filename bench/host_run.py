"""The shapes checkpoint in the host, loaded with its stock loader, and one run of a sampler on it."""

import folder_paths
import nodes
import torch

from ..demo import shapes_loader
from ..demo.shapes import CHECKPOINT


def load_shapes():
    """(model, clip, vae) of the shapes checkpoint."""
    shapes_loader.register()
    folder_paths.add_model_folder_path("checkpoints", str(CHECKPOINT.parent))
    return nodes.CheckpointLoaderSimple().load_checkpoint(CHECKPOINT.name)[:3]


def encode_texts(clip, texts: list[str]):
    """One conditioning with a row for each text."""
    rows = [clip.encode_from_tokens(clip.tokenize(text), return_pooled=True) for text in texts]
    return [[torch.cat([cond for cond, _ in rows]), {"pooled_output": torch.cat([pooled for _, pooled in rows])}]]


def sample(guider, sampler, sigmas, latent, mask=None, seed=0):
    """As SamplerCustomAdvanced runs it, from the noise of the seed."""
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(seed))
    return guider.sample(noise, latent.clone(), sampler, sigmas, denoise_mask=mask, disable_pbar=True, seed=seed)
