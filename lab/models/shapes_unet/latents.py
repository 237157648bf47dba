"""What the UNet and the text encoder are trained on: scenes as latents, their captions as tokens."""

import random
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from comfy.taesd.taesd import Encoder
from safetensors.torch import load_file, save_file
from torch import Tensor

from ...world.data import Scene, caption, render, sample_scene
from .loader import ShapesTokenizer
from .train_vae import FILE, PREFIXES, SD15_SCALE, slim, slim_state

BATCH = 8


def training_data(work: Path, scenes: int) -> dict[str, Tensor]:
    """{"latents" (n, 4, 16, 16), "ids" (n, 77), "empty" (77,), "vocabulary"}, made once and kept in the work folder.

    `ids` and `empty` index `vocabulary`, which holds the CLIP tokens in use. Needs the trained VAE in that folder.
    """
    path = work / f"latents_{scenes}.safetensors"
    if not path.exists():
        start = time.monotonic()
        data = _encoded(work / FILE, scenes)
        save_file(data, path)
        print(
            f"{scenes} latents in {time.monotonic() - start:.0f}s, {len(data['vocabulary'])} tokens, "
            f"std {data['latents'].std((0, 2, 3)).tolist()}",
            flush=True,
        )
    return load_file(path)


@torch.no_grad()
def _encoded(vae: Path, scenes: int) -> dict[str, Tensor]:
    if not vae.exists():
        raise ValueError(
            f"{vae} is not there: train the autoencoder first (python -m lab.models shapes_unet.train_vae 8)"
        )
    rng, encode = random.Random(0), encoder(load_file(vae))
    latents, captions = [], []
    while len(captions) < scenes:
        batch = [sample_scene(rng) for _ in range(BATCH)]
        latents.append(encode(pictures(batch)))
        captions += [caption(scene) for scene in batch]
    return {"latents": torch.cat(latents), **_tokens(captions)}


def pictures(scenes: list[Scene]) -> Tensor:
    """The scenes as the autoencoder takes them: (n, 3, SIZE, SIZE), 0..1."""
    return stacked(map(render, scenes))


def stacked(pictures: Iterable[np.ndarray]) -> Tensor:
    """uint8 pictures (H, W, 3) as (n, 3, H, W), 0..1."""
    return torch.from_numpy(np.stack(list(pictures))).permute(0, 3, 1, 2).float() / 255


def encoder(state: dict[str, Tensor]):
    """Pictures (n, 3, H, W) in 0..1 to latents as the UNet sees them: the host's VAE, then its SD15 latent format.

    `state` has the tensors of the autoencoder's file; the padding to TAESD's width is left out, which is faster.
    """
    net = slim(Encoder(4))
    net.load_state_dict(slim_state(state, PREFIXES[0]))
    net = net.to(memory_format=torch.channels_last)
    scale = SD15_SCALE / state["vae_scale"]
    return lambda pictures: net(pictures.contiguous(memory_format=torch.channels_last)).contiguous() * scale


def _tokens(captions: list[str]) -> dict[str, Tensor]:
    tokenizer = ShapesTokenizer()
    unique = [*sorted(set(captions)), ""]
    padded = [[token for token, _ in tokenizer.tokenize_with_weights(text)["l"][0]] for text in unique]
    vocabulary, ids = torch.tensor(padded).unique(return_inverse=True)
    row = {text: index for index, text in enumerate(unique)}
    return {"ids": ids[[row[text] for text in captions]], "empty": ids[-1].clone(), "vocabulary": vocabulary}
