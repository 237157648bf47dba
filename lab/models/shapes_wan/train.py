"""Trains the video transformer and its text encoder on latents; writes its state and the checkpoint (EMA, fp16).

The text encoder first learns to read captions by itself (`caption_roles`), then both learn together. Goes on from
WORK/wan_state.safetensors, with a new learning-rate cycle, when there is one. Needs `train_vae` first.
"""

import argparse
import random
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from comfy.latent_formats import Wan21
from comfy.ldm.wan.vae import WanVAE
from safetensors.torch import load_file, save_file
from torch import Tensor

from ...world.clips import Clip, caption, render_clip, sample_clip
from ..caption_roles import learn
from ..shapes_flux.captions import read
from ..shapes_flux.train import optimizers
from ..shapes_unet.train_vae import WORK
from ..training import Batches, Training, flow_loss, replace_file, train
from .autoencoder import CHANNELS, TEMPORAL, encode
from .loader import ONE_OBJECT_TOKENS, SHIFT, TOKENS
from .network import Network, checkpoint_state
from .roles import SIZES, roles_in
from .train_vae import FILE

BATCH, CAPTION_DROPOUT = 64, 0.1
STATE, CHECKPOINT = "wan_state.safetensors", "shapes_wan.safetensors"
SEED, TWO_SHARE = 22, 0.5
ENCODED = 8  # clips at a time


def main(argv: list[str]) -> None:
    """The command line."""
    wanted = _arguments(argv)
    torch.manual_seed(0)
    vae = autoencoder_file(wanted.work)
    clips = sampled(wanted.clips)
    captions = read([caption(clip) for clip in clips], TOKENS)
    net, state = Network(len(captions.vocabulary)), wanted.work / STATE
    if not state.exists():
        right = learn(net, captions.rows, [roles_in(clip) for clip in clips], SIZES)
        print(f"captions: {right:.3f} of the words read right", flush=True)
    training = Training(net, optimizers(net))
    if state.exists():
        training.load(state)
        torch.manual_seed(training.step)  # other batches than the first run's

    def save() -> None:
        training.save(state)
        replace_file(wanted.work / CHECKPOINT, checkpoint_state(training.ema, captions.vocabulary, vae))

    latents = kept_latents(wanted.work / f"wan_{wanted.clips}.safetensors", vae, clips)
    data = {"latents": latents, "ids": captions.rows, "empty": captions.empty}
    batches = Batches(data, BATCH, wanted.two, CAPTION_DROPOUT, ONE_OBJECT_TOKENS)
    train(training, batches, lambda x0, ids: flow_loss(net, x0, ids, SHIFT), wanted.minutes * 60, save)


def autoencoder_file(work: Path) -> dict[str, Tensor]:
    """The tensors of the trained autoencoder in that folder."""
    if not (work / FILE).exists():
        raise ValueError(
            f"{work / FILE} is not there: train the autoencoder first (python -m lab.models shapes_wan.train_vae 20)"
        )
    return load_file(work / FILE)


def sampled(count: int) -> list[Clip]:
    """The clips to train on."""
    rng = random.Random(SEED)
    return [sample_clip(rng, rng.random() < TWO_SHARE) for _ in range(count)]


def kept_latents(path: Path, vae: dict[str, Tensor], clips: list[Clip]) -> Tensor:
    """The clips as latents, made once and kept in that file."""
    if not path.exists():
        start = time.monotonic()
        save_file({"latents": latents_of(vae, clips)}, path)
        print(f"{path.name} in {time.monotonic() - start:.0f}s", flush=True)
    return load_file(path)["latents"]


@torch.no_grad()
def latents_of(state: dict[str, Tensor], clips: list[Clip]) -> Tensor:
    """Clips as the transformer sees them, fp16 (n, 16, 3, 8, 8): the autoencoder's latents in Wan's format."""
    vae = WanVAE(dim=state["decoder.head.0.gamma"].shape[0], z_dim=CHANNELS, temperal_downsample=TEMPORAL)
    vae.load_state_dict({key: value.float() for key, value in state.items()})
    into, parts = Wan21().process_in, []
    for start in range(0, len(clips), ENCODED):
        frames = stacked(render_clip(clip) for clip in clips[start : start + ENCODED])
        parts.append(into(encode(vae, 2 * frames - 1)).half())
    return torch.cat(parts)


def stacked(clips: Iterable[np.ndarray]) -> Tensor:
    """uint8 clips (t, H, W, 3) as (n, 3, t, H, W), 0..1."""
    frames = torch.from_numpy(np.stack(list(clips))).permute(0, 4, 1, 2, 3).float() / 255
    return frames.contiguous(memory_format=torch.channels_last_3d)


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m lab.models shapes_wan.train", description=__doc__)
    parser.add_argument("minutes", type=float, help="how long to train, earlier runs included")
    parser.add_argument("--two", type=float, default=0.4, help="share of two-object clips per batch")
    parser.add_argument("--clips", type=int, default=20000, help="clips to train on")
    parser.add_argument("--work", type=Path, default=WORK, help="folder for what is learned")
    return parser.parse_args(argv)
