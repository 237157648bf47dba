"""Trains the text encoder and the UNet on latents; writes the checkpoint (EMA weights, fp16) and its own state.

Goes on from WORK/state.safetensors, with a new learning-rate cycle, when there is one. Needs `train_vae` first.
"""

import argparse
import math
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .latents import training_data
from .network import Network, checkpoint_state, make_host_trainable
from .train_vae import FILE, WORK

BATCH, LEARNING_RATE, WARM_UP, CAPTION_DROPOUT, EMA = 64, 6e-4, 200, 0.1, 0.999
LEVELS = 1000
SAVE_EVERY = 300  # seconds
ONE_OBJECT_TOKENS = 9  # with start and end; captions of two objects have more


class Training:
    """Everything that changes while training: network, its running mean, optimiser, steps and seconds spent."""

    def __init__(self, words: int):
        self.net = Network(words)
        self.optimizer = torch.optim.AdamW(
            self.net.trained(), lr=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.01, fused=True
        )
        self.ema = {key: value.clone() for key, value in self.net.state_dict().items()}
        self.step, self.seconds = 0, 0.0

    def save(self, path: Path) -> None:
        """Everything needed to go on."""
        tensors = {f"net.{key}": value for key, value in self.net.state_dict().items()}
        tensors |= {f"ema.{key}": value for key, value in self.ema.items()}
        for index, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{key}": value for key, value in moments.items()}
        tensors["spent"] = torch.tensor([self.step, self.seconds], dtype=torch.float64)
        save_file({key: value.contiguous() for key, value in tensors.items()}, path)

    def load(self, path: Path) -> None:
        """The inverse of `save`."""
        parts: dict[str, dict] = {}
        for key, value in load_file(path).items():
            part, _, rest = key.partition(".")
            parts.setdefault(part, {})[rest] = value
        moments: dict[int, dict] = {}
        for key, value in parts["optimizer"].items():
            index, _, name = key.partition(".")
            moments.setdefault(int(index), {})[name] = value
        self.net.load_state_dict(parts["net"])
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
        self.ema = {key: parts["ema"][key] for key in self.ema}  # in the network's order, which the file does not keep
        step, self.seconds = parts["spent"][""].tolist()
        self.step = int(step)

    def update(self, loss: Tensor) -> None:
        """One step of the optimiser and of the running mean."""
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(list(self.net.parameters()), 1.0)
        self.optimizer.step()
        self.step += 1
        decay = min(EMA, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.ema.values()), list(self.net.state_dict().values()), 1 - decay)


class Batches:
    """Random batches with a set share of two-object scenes, some captions dropped."""

    def __init__(self, data: dict[str, Tensor], two_share: float):
        self.data, self.two_share = data, two_share
        padding = data["empty"][1]
        two = (data["ids"] != padding).sum(1) > ONE_OBJECT_TOKENS
        self.pools = two.logical_not().nonzero()[:, 0], two.nonzero()[:, 0]

    def draw(self) -> tuple[Tensor, Tensor]:
        """Latents (BATCH, 4, 16, 16) and token rows (BATCH, 77)."""
        twos = int((torch.rand(BATCH) < self.two_share).sum())
        counts = BATCH - twos, twos
        drawn = [pool[torch.randint(len(pool), (n,))] for pool, n in zip(self.pools, counts, strict=True)]
        rows = torch.cat(drawn)
        dropped = torch.rand(BATCH, 1) < CAPTION_DROPOUT
        return self.data["latents"][rows], torch.where(dropped, self.data["empty"], self.data["ids"][rows])


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
    training, state = Training(len(data["vocabulary"])), wanted.work / "state.safetensors"
    if state.exists():
        training.load(state)

    def save() -> None:
        training.save(state)
        vae = load_file(wanted.work / FILE)
        _replace(wanted.work / "shapes.safetensors", checkpoint_state(training.ema, data["vocabulary"], vae))

    train(training, Batches(data, wanted.two), Loss(training.net, wanted.compile), wanted.minutes * 60, save)


def train(training: Training, batches: Batches, loss_of: Loss, total: float, save) -> None:
    """Trains until `total` seconds are spent, those of earlier runs included; calls `save` now and then and last."""
    first, before = training.step, training.seconds
    start, saved, losses = time.monotonic() - before, before, []
    while training.seconds < total:
        training.seconds = time.monotonic() - start
        rate = _learning_rate(training.step - first, min(1.0, (training.seconds - before) / (total - before)))
        training.optimizer.param_groups[0]["lr"] = rate
        loss = loss_of(*batches.draw())
        training.update(loss)
        losses.append(loss.item())
        if training.step % 100 == 0 or training.seconds >= total:
            recent = losses[-100:]
            print(
                f"{training.seconds:6.0f}s step {training.step} loss {sum(recent) / len(recent):.5f} lr {rate:.2e}",
                flush=True,
            )
        if training.seconds - saved > SAVE_EVERY or training.seconds >= total:
            saved = training.seconds
            save()


def _learning_rate(step: int, done: float) -> float:
    """Warm-up, then a cosine down to 2%."""
    return LEARNING_RATE * min(1, (step + 1) / WARM_UP) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))


def _replace(path: Path, state: dict[str, Tensor]) -> None:
    """Write the file so that no reader ever sees half of it."""
    save_file(state, f"{path}.tmp")
    os.replace(f"{path}.tmp", path)


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m lab.models shapes_unet.train", description=__doc__)
    parser.add_argument("minutes", type=float, help="how long to train, earlier runs included")
    parser.add_argument("--two", type=float, default=0.4, help="share of two-object scenes per batch")
    parser.add_argument("--scenes", type=int, default=30000, help="scenes to train on")
    parser.add_argument("--work", type=Path, default=WORK, help="folder for what is learned")
    parser.add_argument("--compile", action="store_true", help="compile the UNet (needs a C++ compiler; faster)")
    return parser.parse_args(argv)
