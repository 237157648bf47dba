"""Trains the joint transformer and its text encoder on latents; writes its state and the checkpoint (EMA, fp16).

The text encoder first learns to read captions by itself (`caption_roles`), then both learn together. Goes on from
WORK/flux_state.safetensors, with a new learning-rate cycle, when there is one. The latents are those of the UNet's own
autoencoder, in weights/shapes.safetensors.
"""

import argparse
import math
from pathlib import Path

import torch

from ...world.data import caption, render
from ..caption_roles import learn
from ..fine_tuning import Base, scenes_of
from ..shapes_unet.train_vae import WORK
from ..training import Batches, Training, flow_loss, replace_file, train
from .captions import read
from .loader import SHIFT
from .network import Network, checkpoint_state
from .roles import SIZES, roles_in

BATCH, CAPTION_DROPOUT = 64, 0.1
MUON_RATE, ADAMW_RATE = 1.5e-3, 1e-3
STATE, CHECKPOINT = "flux_state.safetensors", "shapes_flux.safetensors"
SEED = 21


def main(argv: list[str]) -> None:
    """The command line."""
    wanted = _arguments(argv)
    torch.manual_seed(0)
    scenes = scenes_of(wanted.scenes, SEED)
    captions = read([caption(scene) for scene in scenes])
    latents = Base().latents(wanted.work / f"flux_{wanted.scenes}.safetensors", map(render, scenes))
    net, state = Network(len(captions.vocabulary)), wanted.work / STATE
    if not state.exists():
        learn(net, captions.rows, [roles_in(scene) for scene in scenes], SIZES)
    training = Training(net, optimizers(net))
    if state.exists():
        training.load(state)
        torch.manual_seed(training.step)  # other batches than the first run's

    def save() -> None:
        training.save(state)
        replace_file(wanted.work / CHECKPOINT, checkpoint_state(training.ema, captions.vocabulary))

    data = {"latents": latents, "ids": captions.rows, "empty": captions.empty}
    batches = Batches(data, BATCH, wanted.two, CAPTION_DROPOUT)
    train(training, batches, lambda x0, ids: flow_loss(net, x0, ids, math.exp(SHIFT)), wanted.minutes * 60, save)


def optimizers(net: Network) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al. 2024) for the blocks' matrices, AdamW for all else."""
    matrices, rest = [], []
    for name, parameter in net.named_parameters():
        hidden = "block" in name and parameter.ndim == 2 and not name.endswith("relative_attention_bias.weight")
        (matrices if hidden and "mod" not in name else rest).append(parameter)
    return [
        torch.optim.Muon(matrices, lr=MUON_RATE, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=ADAMW_RATE, betas=(0.9, 0.99), weight_decay=0.01, fused=True),
    ]


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m lab.models shapes_flux.train", description=__doc__)
    parser.add_argument("minutes", type=float, help="how long to train, earlier runs included")
    parser.add_argument("--two", type=float, default=0.6, help="share of two-object scenes per batch")
    parser.add_argument("--scenes", type=int, default=40000, help="scenes to train on")
    parser.add_argument("--work", type=Path, default=WORK, help="folder for what is learned")
    return parser.parse_args(argv)
