"""Trains the text encoder and the UNet on latents; writes the checkpoint (EMA weights, fp16) and its own state.

Goes on from WORK/state.safetensors, with a new learning-rate cycle, when there is one. Needs `train_vae` first.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from ..training import Batches, Training, replace_file, train
from .latents import training_data
from .network import Network, checkpoint_state, make_host_trainable
from .train_vae import FILE, WORK

BATCH, LEARNING_RATE, CAPTION_DROPOUT = 64, 6e-4, 0.1
LEVELS = 1000


class Schedule:
    """SD1's noise schedule; the eps loss weighted by soft min-SNR (Hang et al. 2023, arXiv:2303.09556)."""

    def __init__(self):
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, LEVELS) ** 2
        self.alpha_bar = torch.cumprod(1 - betas, 0)
        self.weight = (5 * (1 - self.alpha_bar) / self.alpha_bar).clamp(0.1, 1)

    def loss(self, x0: Tensor, eps_of: Callable[[Tensor, Tensor], Tensor], noisier: bool = False) -> Tensor:
        """Of `eps_of`, which takes noised latents and their levels (0 to 999); `noisier` draws more of the higher."""
        t, noise = torch.randint(LEVELS, (len(x0),)), torch.randn_like(x0)
        if noisier:
            t = torch.maximum(t, torch.randint(LEVELS, (len(x0),)))
        alpha_bar = self.alpha_bar[t].view(-1, 1, 1, 1)
        x = alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * noise
        with torch.autocast("cpu", torch.bfloat16):
            eps = eps_of(x, t.float())
        return ((eps.float() - noise).square().mean((1, 2, 3)) * self.weight[t]).mean()


class Loss:
    """The loss of latents and token rows."""

    def __init__(self, net: Network, compiled: bool):
        self.net, self.schedule = net, Schedule()
        self.unet = torch.compile(net.unet) if compiled else net.unet

    def __call__(self, x0: Tensor, ids: Tensor) -> Tensor:
        def eps(x: Tensor, t: Tensor) -> Tensor:
            return self.unet(x, t, context=self.net.encode(ids), transformer_options={})

        return self.schedule.loss(x0, eps)


def main(argv: list[str]) -> None:
    """The command line."""
    wanted = _arguments(argv)
    torch.manual_seed(0)
    make_host_trainable()
    wanted.work.mkdir(parents=True, exist_ok=True)
    data = training_data(wanted.work, wanted.scenes)
    net, state = Network(len(data["vocabulary"])), wanted.work / "state.safetensors"
    adamw = torch.optim.AdamW(net.trained(), lr=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    training = Training(net, [adamw])
    if state.exists():
        training.load(state)

    def save() -> None:
        training.save(state)
        vae = load_file(wanted.work / FILE)
        replace_file(wanted.work / "shapes.safetensors", checkpoint_state(training.ema, data["vocabulary"], vae))

    batches = Batches(data, BATCH, wanted.two, CAPTION_DROPOUT)
    train(training, batches, Loss(net, wanted.compile), wanted.minutes * 60, save)


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m lab.models shapes_unet.train", description=__doc__)
    parser.add_argument("minutes", type=float, help="how long to train, earlier runs included")
    parser.add_argument("--two", type=float, default=0.4, help="share of two-object scenes per batch")
    parser.add_argument("--scenes", type=int, default=30000, help="scenes to train on")
    parser.add_argument("--work", type=Path, default=WORK, help="folder for what is learned")
    parser.add_argument("--compile", action="store_true", help="compile the UNet (needs a C++ compiler; faster)")
    return parser.parse_args(argv)
