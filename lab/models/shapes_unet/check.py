"""Loads the checkpoint with the host's stock nodes, samples, reads the pictures back and scores them.

Prints the figures as JSON and writes the sheet of sixteen captions.
"""

import argparse
import json
import random
import statistics
import time
from collections.abc import Iterable
from pathlib import Path

import comfy.utils
import nodes
import numpy as np
import torch
from PIL import Image

from ...weights import CHECKPOINT
from ...world.data import SIZE, caption, render, sample_scene
from ...world.metrics import aggregate, psnr
from ...world.reader import score
from ..stock import load
from .loader import TEXT_WIDTH

SHEET = [
    "a red circle on a blue background",
    "a green square on a white background",
    "a yellow triangle on a black background",
    "a purple star on a gray background",
    "a orange heart on a blue background",
    "a pink cross on a black background",
    "a blue heart on a white background",
    "a red square on a green background",
    "a green square left of a yellow triangle on a white background",
    "a red circle above a blue square on a gray background",
    "a purple heart left of a pink star on a black background",
    "a yellow cross above a red triangle on a blue background",
    "a blue circle left of a red circle on a white background",
    "a orange star above a green heart on a black background",
    "a pink square left of a purple cross on a green background",
    "a yellow circle above a purple triangle on a gray background",
]
SHEET_FILE = Path(__file__).with_name("sheet.png")
COLUMNS, BATCH = 4, 32
TIMED_CALLS = 30


class Stock:
    """The checkpoint behind the host's stock nodes."""

    def __init__(self, checkpoint: Path = CHECKPOINT, sampler: str = "euler", steps: int = 20, cfg: float = 5.0):
        self.model, self.clip, self.vae = load(checkpoint)
        self.sampler, self.steps, self.cfg = sampler, steps, cfg

    def pictures(self, captions: list[str], seed: int) -> np.ndarray:
        """One picture per caption, uint8 (n, SIZE, SIZE, 3), as the stock KSampler makes them from noise."""
        latent = nodes.EmptyLatentImage().generate(SIZE, SIZE, len(captions))[0]
        return self.sampled(*self.conditionings(captions), latent, seed)

    def conditionings(self, captions: list[str]) -> tuple[list, list]:
        """Positive (a row per caption) and negative (empty)."""
        encode = nodes.CLIPTextEncode().encode
        positive, negative = encode(self.clip, "")[0], encode(self.clip, "")[0]
        positive[0][0] = torch.cat([encode(self.clip, text)[0][0][0] for text in captions])
        return positive, negative

    def sampled(self, positive: list, negative: list, latent: dict, seed: int) -> np.ndarray:
        """What the stock KSampler makes of conditionings and latent."""
        latent = nodes.KSampler().sample(
            self.model, seed, self.steps, self.cfg, self.sampler, "normal", positive, negative, latent, 1.0
        )[0]
        return _bytes(nodes.VAEDecode().decode(self.vae, latent)[0])

    def round_trip(self, picture: np.ndarray) -> np.ndarray:
        """A uint8 picture through the autoencoder."""
        pixels = torch.from_numpy(picture.copy())[None].float() / 255
        latent = nodes.VAEEncode().encode(self.vae, pixels)[0]
        return _bytes(nodes.VAEDecode().decode(self.vae, latent)[0])[0]


def main(argv: list[str]) -> None:
    """The command line."""
    wanted = _arguments(argv)
    comfy.utils.PROGRESS_BAR_ENABLED = False
    stock = Stock(wanted.checkpoint, wanted.sampler, wanted.steps, wanted.cfg)
    results = {"sheet": check_sheet(stock, wanted.sheet)}
    for name, two in (("one", False), ("two", True)):
        results[name] = check_random(stock, two, wanted.n)
    if wanted.vae:
        results["vae"] = check_vae(stock)
    if wanted.time:
        results["unet_seconds"] = time_unet(stock.model.model)
    print(json.dumps(results, indent=1))


def check_sheet(stock: Stock, path: Path) -> dict:
    """Sixteen captions, each from its own seed: the picture of all, and how they score."""
    start = time.monotonic()
    pictures = [stock.pictures([text], seed)[0] for seed, text in enumerate(SHEET)]
    seconds = (time.monotonic() - start) / len(SHEET)
    rows = [np.concatenate(pictures[i : i + COLUMNS], 1) for i in range(0, len(SHEET), COLUMNS)]
    Image.fromarray(np.concatenate(rows)).save(path)
    scores = [score(picture, text) for picture, text in zip(pictures, SHEET, strict=True)]
    for text, found in zip(SHEET, scores, strict=True):
        print("ok  " if found["all"] else "MISS", text, found)
    return _mean(scores) | {"seconds_per_picture": round(seconds, 2)}


def check_random(stock: Stock, two: bool, count: int, seed: int = 99) -> dict:
    """Random captions of one kind, drawn by this seed, and fixed noise."""
    rng, scores = random.Random(seed), []
    captions = [caption(sample_scene(rng, two)) for _ in range(count)]
    for start in range(0, count, BATCH):
        batch = captions[start : start + BATCH]
        scores += map(score, stock.pictures(batch, 1000 + start), batch)
    return _mean(scores)


def check_vae(stock: Stock, count: int = 200) -> dict:
    """The autoencoder alone on fresh renders."""
    rng = random.Random(5)
    scenes = [sample_scene(rng) for _ in range(count)]
    return _mean(_round_trip_score(stock, scene) for scene in scenes)


def time_unet(model) -> dict[int, float]:
    """Median seconds of one UNet evaluation by batch size."""
    return {batch: round(_median_seconds(model, batch), 4) for batch in (1, 2, 8)}


def _round_trip_score(stock: Stock, scene: dict) -> dict:
    picture = render(scene)
    back = stock.round_trip(picture)
    return score(back, caption(scene)) | {"psnr": psnr(picture, back)}


@torch.inference_mode()
def _median_seconds(model, batch: int) -> float:
    side, sigma = SIZE // 8, torch.full((batch,), 5.0)
    x, context = torch.randn(batch, 4, side, side), torch.randn(batch, 77, TEXT_WIDTH)
    seconds = []
    for _ in range(TIMED_CALLS):
        start = time.perf_counter()
        model.apply_model(x, sigma, c_crossattn=context)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def _bytes(pixels: torch.Tensor) -> np.ndarray:
    return (pixels.clamp(0, 1) * 255).round().byte().numpy()


def _mean(scores: Iterable[dict]) -> dict:
    return {name: round(value, 3) for name, value in aggregate(scores).items()}


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m lab.models shapes_unet.check", description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    parser.add_argument("--n", type=int, default=64, help="random captions of each kind to score")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--cfg", type=float, default=5.0)
    parser.add_argument("--sampler", default="euler")
    parser.add_argument("--vae", action="store_true", help="score the autoencoder alone too")
    parser.add_argument("--time", action="store_true", help="time the UNet too")
    parser.add_argument("--sheet", type=Path, default=SHEET_FILE, help="where the sheet goes")
    return parser.parse_args(argv)
