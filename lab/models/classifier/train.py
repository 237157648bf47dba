"""Trains the noise-aware classifier of the checkpoint's latents and writes its file; prints how it does on new scenes.

The labels are what one-object scenes show ("red circle", 42 of them) and "two objects". Latents are noised as sampling
meets them, at the model's own levels. Needs the checkpoint, not the folder it was trained in.
"""

import argparse
import math
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from ....files.classifier_file import write_classifier
from ....samplers.classifier import Classifier, Network, input_scale, log_level
from ....samplers.noise_law import VARIANCE_EXPLODING
from ...weights import CHECKPOINT, CLASSIFIER
from ...world.data import COLORS, SHAPES, Scene, sample_scene
from ..shapes_unet.latents import encoder, pictures
from ..shapes_unet.train_vae import WORK
from ..stock import load

TWO = "two objects"
LABELS = (*(f"{color} {shape}" for color in COLORS for shape in SHAPES), TWO)
TWO_SHARE = 0.5  # of the scenes; the checkpoint saw 40%, later 70%
WIDTH, BATCH = 32, 128
LEARNING_RATE, FLOOR, WARM_UP, WEIGHT_DECAY, EMA = 2e-3, 1e-5, 100, 0.05, 0.999
UPPER = 0.3  # of the levels are drawn from the noisier half, the others from all
HELD_OUT, SIGMAS = 2000, (0.03, 0.5, 1.0, 2.0, 4.0, 8.0, 14.0)
ENCODED = 8  # pictures at a time


class Levels:
    """Latents noised at random levels of the model, as the network takes them."""

    def __init__(self, sigmas: list[float]):
        law = VARIANCE_EXPLODING
        self.sigmas = torch.tensor(sigmas)
        self.scales = torch.tensor([input_scale(law, sigma) for sigma in sigmas])
        self.levels = torch.tensor([log_level(law, sigma) for sigma in sigmas])

    def noised(self, x0: Tensor) -> tuple[Tensor, Tensor]:
        """(latents scaled to unit variance, their log levels)."""
        count = len(self.sigmas)
        lowest = (torch.rand(len(x0)) < UPPER) * (count // 2)
        t = (lowest + torch.rand(len(x0)) * (count - lowest)).long()
        x = x0 + self.sigmas[t].view(-1, 1, 1, 1) * torch.randn_like(x0)
        return self.scales[t].view(-1, 1, 1, 1) * x, self.levels[t]


def main(argv: list[str]) -> None:
    """The command line."""
    wanted = _arguments(argv)
    torch.manual_seed(0)
    wanted.work.mkdir(parents=True, exist_ok=True)
    data, held_out = labelled_latents(wanted.work, wanted.scenes, 1), labelled_latents(wanted.work, HELD_OUT, 2)
    model = load()[0]
    levels = Levels(model.get_model_object("model_sampling").sigmas.tolist())
    network = train(data, held_out, levels, wanted.minutes)
    latent_format = type(model.model.latent_format).__name__
    classifier = Classifier(LABELS, VARIANCE_EXPLODING, latent_format, network.requires_grad_(False).eval())
    write_classifier(wanted.file, classifier)
    report(classifier, held_out)


def labelled_latents(work: Path, scenes: int, seed: int) -> dict[str, Tensor]:
    """{"latents" (n, 4, 16, 16), "labels" (n,)}, made once and kept in the work folder."""
    path = work / f"labelled_{scenes}_{seed}.safetensors"
    if not path.exists():
        start = time.monotonic()
        save_file(_encoded(scenes, seed), path)
        print(f"{scenes} latents in {time.monotonic() - start:.0f}s", flush=True)
    return load_file(path)


def label_of(scene: Scene) -> int:
    """The scene's place in LABELS."""
    one = scene["objs"][0]
    return LABELS.index(TWO if len(scene["objs"]) > 1 else f"{one['color']} {one['shape']}")


def train(data: dict[str, Tensor], held_out: dict[str, Tensor], levels: Levels, minutes: float) -> Network:
    """The running mean of the weights after so many minutes."""
    network = Network(data["latents"].shape[1], WIDTH, len(LABELS))
    averaged = torch.optim.swa_utils.AveragedModel(
        network, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(EMA)
    )
    optimizer = torch.optim.AdamW(network.parameters(), betas=(0.9, 0.99), weight_decay=WEIGHT_DECAY, fused=True)
    start, step, done, losses = time.monotonic(), 0, 0.0, []
    while done < 1:
        done = min(1.0, (time.monotonic() - start) / (60 * minutes))
        optimizer.param_groups[0]["lr"] = _learning_rate(step, done)
        rows = torch.randint(len(data["labels"]), (BATCH,))
        with torch.autocast("cpu", torch.bfloat16):
            logits = network(*levels.noised(data["latents"][rows]))
        loss = F.cross_entropy(logits.float(), data["labels"][rows])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        averaged.update_parameters(network)
        losses.append(loss.item())
        if step % 250 == 0 or done == 1:
            recent, other = losses[-250:], _loss(averaged.module, held_out, levels)
            print(
                f"{time.monotonic() - start:6.0f}s step {step} loss {sum(recent) / len(recent):.3f} new {other:.3f}",
                flush=True,
            )
        step += 1
    return averaged.module


@torch.no_grad()
def report(classifier: Classifier, held_out: dict[str, Tensor]) -> None:
    """Prints a table on new scenes, each noised once per sigma.

    Calibrated, confidence is the accuracy and the negative entropy the log-likelihood.
    """
    print("sigma | accuracy | confidence | log-likelihood | -entropy | one object: accuracy | ... of the 42 labels")
    x0, labels = held_out["latents"], held_out["labels"]
    one = labels != LABELS.index(TWO)
    for sigma in SIGMAS:
        noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
        logs = torch.cat([classifier.log_probs(x, sigma) for x in (x0 + sigma * noise).split(500)])
        right = (logs.argmax(1) == labels).float()
        among = (logs[:, : LABELS.index(TWO)].argmax(1) == labels).float()
        figures = (
            right.mean(),
            logs.exp().amax(1).mean(),
            logs.gather(1, labels[:, None]).mean(),
            (logs.exp() * logs).sum(1).mean(),
            right[one].mean(),
            among[one].mean(),
        )
        print(f"{sigma:g} | " + " | ".join(f"{figure:.3f}" for figure in figures), flush=True)


@torch.no_grad()
def _loss(network: Network, data: dict[str, Tensor], levels: Levels) -> float:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        noised = levels.noised(data["latents"])
    parts = zip(*(tensor.split(500) for tensor in (*noised, data["labels"])), strict=True)
    return sum(F.cross_entropy(network(x, level), y, reduction="sum").item() for x, level, y in parts) / len(noised[0])


@torch.no_grad()
def _encoded(scenes: int, seed: int) -> dict[str, Tensor]:
    prefix = "first_stage_model."
    state = {key.removeprefix(prefix): value.float() for key, value in load_file(CHECKPOINT).items() if prefix in key}
    rng, encode = random.Random(seed), encoder(state)
    latents, labels = [], []
    while len(labels) < scenes:
        batch = [sample_scene(rng, rng.random() < TWO_SHARE) for _ in range(ENCODED)]
        with torch.autocast("cpu", torch.bfloat16):
            latents.append(encode(pictures(batch)).float())
        labels += map(label_of, batch)
    return {"latents": torch.cat(latents), "labels": torch.tensor(labels)}


def _learning_rate(step: int, done: float) -> float:
    return LEARNING_RATE * min(1, (step + 1) / WARM_UP) * (0.5 + 0.5 * math.cos(math.pi * done)) + FLOOR


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m lab.models classifier.train", description=__doc__)
    parser.add_argument("minutes", type=float, help="how long to train")
    parser.add_argument("--scenes", type=int, default=24000, help="scenes to train on")
    parser.add_argument("--work", type=Path, default=WORK, help="folder for the latents")
    parser.add_argument("--file", type=Path, default=CLASSIFIER, help="where the classifier goes")
    return parser.parse_args(argv)
