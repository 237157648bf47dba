"""Loads the video checkpoint with the host's stock nodes, samples, reads the clips back and scores them.

Prints the figures as JSON and writes the sheet of eight captions, a row of frames each. `--choose` compares values of
cfg instead, on captions of its own, so that what is reported was not chosen by.
"""

import argparse
import json
import random
from pathlib import Path

import comfy.utils
import nodes
import numpy as np
import torch
from PIL import Image

from ...weights import WAN
from ...world.clip_reader import score_clip
from ...world.clips import FRAMES, SIZE, caption, render_clip, sample_clip
from ...world.metrics import aggregate, psnr
from ..shapes_unet.check import Stock
from ..stock import load
from .autoencoder import CHANNELS

SHEET = [
    "a red circle moving right on a white background",
    "a green square moving left on a black background",
    "a yellow star moving up on a blue background",
    "a purple heart moving down on a gray background",
    "a pink triangle standing still on a green background",
    "a orange cross moving left on a white background",
    "a red heart moving up and a blue square moving down on a white background",
    "a yellow circle standing still and a pink star moving right on a black background",
]
SHEET_FILE = Path(__file__).with_name("sheet.png")
REPORTED_BY, CHOSEN_BY = 99, 77  # seeds of captions
KINDS = (("one", False), ("two", True))
BATCH = 16


class WanStock(Stock):
    """The checkpoint behind the host's stock nodes."""

    def __init__(self, checkpoint: Path = WAN, steps: int = 20, cfg: float = 4.0):
        self.model, self.clip, self.vae = load(checkpoint)
        self.steps, self.cfg = steps, cfg

    def clips(self, captions: list[str], seed: int) -> np.ndarray:
        """One clip per caption, uint8 (n, FRAMES, SIZE, SIZE, 3), as the stock KSampler makes them from noise."""
        latent = {"samples": torch.zeros(len(captions), CHANNELS, (FRAMES - 1) // 4 + 1, SIZE // 8, SIZE // 8)}
        told = self.conditionings(captions)
        return self.decoded(
            nodes.KSampler().sample(self.model, seed, self.steps, self.cfg, "euler", "simple", *told, latent, 1.0)[0]
        )

    def decoded(self, latent: dict) -> np.ndarray:
        """What the stock VAEDecode makes of latents, uint8 (n, FRAMES, SIZE, SIZE, 3)."""
        frames = nodes.VAEDecode().decode(self.vae, latent)[0]
        return (frames.clamp(0, 1) * 255).round().byte().cpu().numpy().reshape(-1, FRAMES, *frames.shape[1:])

    def round_trip(self, clip: np.ndarray) -> np.ndarray:
        """A uint8 clip through the autoencoder."""
        pixels = torch.from_numpy(clip.copy()).float() / 255
        return self.decoded(nodes.VAEEncode().encode(self.vae, pixels)[0])[0]


def main(argv: list[str]) -> None:
    """The command line."""
    wanted = _arguments(argv)
    comfy.utils.PROGRESS_BAR_ENABLED = False
    stock = WanStock(wanted.checkpoint, wanted.steps, wanted.cfg)
    if wanted.choose:
        results = choose(stock, wanted.choose, wanted.n)
    else:
        results = {"sheet": check_sheet(stock, wanted.sheet)}
        results |= {name: check_random(stock, two, wanted.n) for name, two in KINDS}
        results |= {f"vae {name}": check_vae(stock, two, wanted.n) for name, two in KINDS}
    print(json.dumps(results, indent=1))


def choose(stock: WanStock, cfgs: list[float], count: int) -> dict:
    """The share of clips with everything right, by cfg and kind."""
    rates = {}
    for cfg in cfgs:
        stock.cfg = cfg
        rates[cfg] = {name: check_random(stock, two, count, CHOSEN_BY)["all"] for name, two in KINDS}
    return rates


def check_sheet(stock: WanStock, path: Path) -> dict:
    """Eight captions, each from its own seed: the frames of all, a row each, and how they score."""
    clips = [stock.clips([text], seed)[0] for seed, text in enumerate(SHEET)]
    Image.fromarray(np.concatenate([np.concatenate(list(clip), 1) for clip in clips])).save(path)
    scores = [score_clip(clip, text) for clip, text in zip(clips, SHEET, strict=True)]
    for text, scored in zip(SHEET, scores, strict=True):
        print("ok  " if scored["all"] else "MISS", text, scored)
    return _mean(scores)


def check_random(stock: WanStock, two: bool, count: int, seed: int = REPORTED_BY) -> dict:
    """Random captions of one kind, drawn by this seed, and fixed noise."""
    rng, scores = random.Random(seed), []
    captions = [caption(sample_clip(rng, two)) for _ in range(count)]
    for start in range(0, count, BATCH):
        batch = captions[start : start + BATCH]
        scores += map(score_clip, stock.clips(batch, 1000 + start), batch)
    return _mean(scores)


def check_vae(stock: WanStock, two: bool, count: int) -> dict:
    """The autoencoder alone on fresh renders."""
    rng, scores = random.Random(5), []
    for _ in range(count):
        clip = sample_clip(rng, two)
        drawn = render_clip(clip)
        back = stock.round_trip(drawn)
        quality = psnr(*(frames.reshape(-1, SIZE, 3) for frames in (drawn, back)))
        scores.append(score_clip(back, caption(clip)) | {"psnr": quality})
    return _mean(scores)


def _mean(scores: list[dict]) -> dict:
    return {name: round(value, 3) for name, value in aggregate(scores).items()}


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m lab.models shapes_wan.check", description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=WAN)
    parser.add_argument("--n", type=int, default=64, help="random captions of each kind to score")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--cfg", type=float, default=4.0)
    parser.add_argument("--choose", type=float, nargs="+", metavar="CFG", help="values to compare")
    parser.add_argument("--sheet", type=Path, default=SHEET_FILE, help="where the sheet goes")
    return parser.parse_args(argv)
