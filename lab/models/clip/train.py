"""Trains the CLIP pair: text and vision tower in one space, for guidance by the gradient of their distance.

Every picture of a batch is compared with every text by the sigmoid loss (SigLIP, Zhai et al. 2023, arXiv:2303.15343),
with the scenes' truth as targets. Half of the data are the shapes model's own estimates from noise, and each batch is
used REPLAYS times with a perturbation that raises its loss (free adversarial training, Shafahi et al. 2019,
arXiv:1904.12843), which makes the gradient by the picture a direction towards shapes instead of noise.
"""

import argparse
import math
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from ...weights import CLIP_TEXT, CLIP_VISION
from ...world.pair_texts import NAMED, draw, fields, scene_fields, truth
from ..shapes_unet.network import make_host_trainable
from ..shapes_unet.train_vae import WORK
from . import loader
from .network import Batch, Towers, files
from .pictures import crops, disturbed, estimates, masks, patch_labels, renders, scenes_of, seen

BATCH, LEARNING_RATE, WARM_UP, EMA = 64, 2e-3, 200, 0.998
REPLAYS, STRENGTH = 3, 4 / 255  # of the perturbation, in 0..1
PEACE = 0.4  # share of the run without perturbation; it grows up to twice that


class Data:
    """Renders and estimates, half of each in a batch, with texts and which of them are true."""

    def __init__(self, work: Path, count: int):
        fresh = scenes_of(count, 4)
        scenes, pictures = estimates(work, count)
        pools = (fresh, renders(fresh)), (scenes, pictures)
        self.pools = [(part, scene_fields(part), torch.cat((shown, masks(part)), 1)) for part, shown in pools]
        self.rng = random.Random(5)

    def draw(self) -> Batch:
        """A random batch; every text of NAMED is in it."""
        drawn = [torch.randint(len(pool[0]), (BATCH // 2,)) for pool in self.pools]
        pairs = list(zip(self.pools, drawn, strict=True))
        scene = {key: torch.cat([pool[1][key][at] for pool, at in pairs]) for key in self.pools[0][1]}
        pictures, windows = crops(torch.cat([pool[2][at] for pool, at in pairs]))
        told = {draw(pool[0][index], self.rng) for pool, at in pairs for index in at.tolist()}
        texts = [*NAMED, *sorted(told - set(NAMED), key=str)]
        true, possible = truth(scene, seen(windows, scene), fields(texts))
        pictures, mask = pictures.split((3, 1), 1)
        patch = loader.VISION_CONFIG["patch_size"]
        labels = patch_labels(windows, scene, patch)
        mask = F.unfold(mask, patch, stride=patch).transpose(1, 2)
        return Batch(disturbed(pictures), texts, true, true == possible, labels, mask)


class Training:
    """Everything that changes while training."""

    def __init__(self):
        self.towers = Towers()
        self.optimizer = torch.optim.AdamW(
            self.towers.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.05, fused=True
        )
        self.ema = {key: value.clone() for key, value in self.towers.state_dict().items()}
        self.step = 0

    def update(self, pictures: Tensor, batch: Batch) -> tuple[float, Tensor]:
        """One step; the loss and its gradient by the pictures."""
        pictures = pictures.detach().requires_grad_()
        loss = self.towers.loss(pictures, batch)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.towers.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        decay = min(EMA, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.ema.values()), list(self.towers.state_dict().values()), 1 - decay)
        return loss.item(), pictures.grad


def main(argv: list[str]) -> None:
    """The command line."""
    parser = argparse.ArgumentParser("python -m lab.models clip.train", description=__doc__)
    parser.add_argument("minutes", type=float, help="how long to train")
    parser.add_argument("--scenes", type=int, default=10000, help="renders, and as many estimates, to train on")
    parser.add_argument("--work", type=Path, default=WORK, help="folder for what is learned")
    wanted = parser.parse_args(argv)
    torch.manual_seed(0)
    random.seed(0)
    wanted.work.mkdir(parents=True, exist_ok=True)
    data = Data(wanted.work, wanted.scenes)
    make_host_trainable()
    training = Training()
    train(training, data, wanted.minutes * 60)
    text, vision = files(training.ema)
    save_file(text, wanted.work / CLIP_TEXT.name)
    save_file(vision, wanted.work / CLIP_VISION.name)


def train(training: Training, data: Data, total: float) -> None:
    """Trains for `total` seconds."""
    start, done, losses, reported = time.monotonic(), 0.0, [], 0
    while done < 1:
        batch = data.draw()
        strength = STRENGTH * min(1.0, max(0.0, done / PEACE - 1))
        perturbation = strength * torch.empty_like(batch.pictures).uniform_(-1, 1)
        for _ in range(REPLAYS if strength else 1):
            done = min(1.0, (time.monotonic() - start) / total)
            training.optimizer.param_groups[0]["lr"] = _learning_rate(training.step, done)
            loss, gradient = training.update(batch.pictures + perturbation, batch)
            perturbation = (perturbation + strength * gradient.sign()).clamp(-strength, strength)
            losses.append(loss)
        if training.step - reported >= 100 or done == 1:
            reported, recent = training.step, losses[-100:]
            scale, bias = training.towers.scale.exp().item(), training.towers.bias.item()
            print(
                f"{time.monotonic() - start:6.0f}s step {training.step} loss {sum(recent) / len(recent):.4f} "
                f"scale {scale:.1f} bias {bias:.1f} strength {strength:.4f}",
                flush=True,
            )


def _learning_rate(step: int, done: float) -> float:
    """Warm-up, then a cosine down to 2%."""
    return LEARNING_RATE * min(1, (step + 1) / WARM_UP) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))
