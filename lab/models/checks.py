"""What the checks of the companion files share: with and without, on the same captions and seeds, against truth.

Euler, 20 steps, cfg 5.
"""

import argparse
import random
from collections.abc import Callable
from pathlib import Path

import comfy.utils
import nodes
import numpy as np
from torch import Tensor

from ..world.data import SIZE, Scene, caption, render, sample_scene
from ..world.metrics import aggregate, iou, object_mask
from ..world.reader import score
from .shapes_unet.check import Stock
from .shapes_unet.latents import stacked
from .stock import with_control

SEED, BATCH = 5000, 16


def count(argv: list[str], command: str, about: str) -> int:
    """How many scenes the command line asks for."""
    parser = argparse.ArgumentParser(f"python -m lab.models {command}", description=about)
    parser.add_argument("--n", type=int, default=64, help="scenes")
    comfy.utils.PROGRESS_BAR_ENABLED = False
    return parser.parse_args(argv).n


def scenes_of(number: int) -> tuple[list[Scene], list[Scene]]:
    """Scenes of one or two objects, and scenes of one."""
    rng = random.Random(77)
    return [sample_scene(rng) for _ in range(number)], [sample_scene(rng, two=False) for _ in range(number)]


def check_told(file: Path, drawn: Callable, number: int) -> None:
    """Prints how a file that is told by control pictures obeys them."""
    stock, scenes = Stock(), scenes_of(number)[0]
    plain = in_batches(stock.pictures, [caption(scene) for scene in scenes])
    report("without", map(told_score, plain, scenes))
    report("with", map(told_score, told_pictures(stock, scenes, file, drawn), scenes))


def report(row: str, figures) -> None:
    """Prints the means."""
    print(f"{row}:", *(f"{key} {value:.3f}" for key, value in aggregate(figures).items()), flush=True)


def told_pictures(stock: Stock, scenes: list[Scene], file: Path, drawn: Callable) -> list[np.ndarray]:
    """The scenes' captions, told by control pictures."""

    def draw(batch: list[Scene], seed: int) -> np.ndarray:
        latent = nodes.EmptyLatentImage().generate(SIZE, SIZE, len(batch))[0]
        told = with_control(*stock.conditionings([caption(scene) for scene in batch]), pixels(map(drawn, batch)), file)
        return stock.sampled(*told, latent, seed)

    return in_batches(draw, scenes)


def in_batches(draw: Callable, items: list) -> list[np.ndarray]:
    """What `draw` makes of the items and a seed, BATCH at a time."""
    starts = range(0, len(items), BATCH)
    return [picture for start in starts for picture in draw(items[start : start + BATCH], SEED + start)]


def pixels(pictures) -> Tensor:
    """uint8 pictures as the host's nodes take them, (n, H, W, 3)."""
    return stacked(pictures).movedim(1, -1)


def told_score(picture: np.ndarray, scene: Scene) -> dict:
    """The reader's score, and the IoU of what is not background with the scene's objects."""
    told = render(scene, only_mask=True) > 0.5
    return {**score(picture, caption(scene)), "told iou": iou(object_mask(picture), told)}
