"""Loads LoRA, ControlNet, T2I-Adapter and inpainting model with the host's stock nodes and measures what they do.

Each with and without, on the same captions, pictures and seeds, against ground truth. Euler, 20 steps, cfg 5.
"""

import argparse
import random
import tempfile
from collections.abc import Callable
from pathlib import Path

import comfy.utils
import nodes
import numpy as np
import torch
from torch import Tensor

from ..weights import CONTROLNET, T2I_ADAPTER
from ..world.control_pictures import outlines, silhouettes
from ..world.data import SIZE, Scene, caption, render, sample_scene
from ..world.hollow import read_hollow
from ..world.metrics import aggregate, iou, object_mask
from ..world.reader import score
from .inpainting.checkpoint import write_checkpoint
from .inpainting.train import CELL, Box, around
from .shapes_unet.check import Stock
from .shapes_unet.latents import stacked
from .stock import with_control, with_lora

SEED, BATCH = 5000, 16
WITHOUT, WITH = "without", "with"


def main(argv: list[str]) -> None:
    """The command line."""
    parser = argparse.ArgumentParser("python -m lab.models check_companions", description=__doc__)
    parser.add_argument("--n", type=int, default=64, help="scenes for each")
    wanted = parser.parse_args(argv)
    comfy.utils.PROGRESS_BAR_ENABLED = False
    stock, rng = Stock(), random.Random(77)
    scenes = [sample_scene(rng) for _ in range(wanted.n)]
    ones = [sample_scene(rng, two=False) for _ in range(wanted.n)]
    plain = in_batches(stock.pictures, [caption(scene) for scene in scenes])
    report("LoRA", WITHOUT, map(hollow_score, plain, scenes))
    report("LoRA", WITH, map(hollow_score, hollow_pictures(stock, scenes), scenes))
    report("told", WITHOUT, map(told_score, plain, scenes))
    report("told", "ControlNet", map(told_score, told_pictures(stock, scenes, CONTROLNET, outlines), scenes))
    report("told", "T2I-Adapter", map(told_score, told_pictures(stock, scenes, T2I_ADAPTER, silhouettes), scenes))
    with tempfile.TemporaryDirectory() as folder:
        inpainting = Stock(write_checkpoint(Path(folder)))
    for name, task, kept in (("replaced", replaced, True), ("completed", completed, True), ("seen", completed, False)):
        wholes, holes, wanted_scenes = task(ones, random.Random(78))
        for row, model in ((WITHOUT, stock), (WITH, inpainting)):
            pictures = inpainted(model, wholes, holes, [caption(scene) for scene in wanted_scenes], kept)
            report(f"inpainting, {name}", row, map(inpainting_score, pictures, wanted_scenes, holes))


def report(name: str, row: str, figures) -> None:
    """Prints the means."""
    print(f"{name}, {row}:", *(f"{key} {value:.3f}" for key, value in aggregate(figures).items()), flush=True)


def hollow_pictures(stock: Stock, scenes: list[Scene]) -> list[np.ndarray]:
    """The scenes' captions, drawn with the LoRA."""
    plain, stock.model = stock.model, with_lora(stock.model, stock.clip)
    pictures = in_batches(stock.pictures, [caption(scene) for scene in scenes])
    stock.model = plain
    return pictures


def told_pictures(stock: Stock, scenes: list[Scene], file: Path, drawn: Callable) -> list[np.ndarray]:
    """The scenes' captions, told by control pictures."""

    def draw(batch: list[Scene], seed: int) -> np.ndarray:
        latent = nodes.EmptyLatentImage().generate(SIZE, SIZE, len(batch))[0]
        told = with_control(*stock.conditionings([caption(scene) for scene in batch]), pixels(map(drawn, batch)), file)
        return stock.sampled(*told, latent, seed)

    return in_batches(draw, scenes)


def replaced(scenes: list[Scene], rng: random.Random) -> tuple[list[np.ndarray], list[Box], list[Scene]]:
    """Pictures, holes that hide the object, and scenes of another object there; its place is not asked for."""
    wanted = [{**scene, "objs": [other_object(scene, rng)]} for scene in scenes]
    return list(map(render, scenes)), [around(scene["objs"][0], rng) for scene in scenes], wanted


def completed(scenes: list[Scene], rng: random.Random) -> tuple[list[np.ndarray], list[Box], list[Scene]]:
    """Pictures, holes that hide the right half of the object, and the same scenes."""
    holes = []
    for scene in scenes:
        left, top, right, bottom = around(scene["objs"][0], rng)
        holes.append((round(scene["objs"][0]["cx"] / CELL) * CELL, top, right, bottom))
    return list(map(render, scenes)), holes, scenes


def inpainted(
    stock: Stock, wholes: list[np.ndarray], holes: list[Box], captions: list[str], kept: bool
) -> list[np.ndarray]:
    """The pictures with their holes filled as the captions say, through the stock InpaintModelConditioning.

    Not `kept`, the sampler starts from noise everywhere: only the inpainting model sees the picture.
    """

    def draw(batch: list[tuple], seed: int) -> np.ndarray:
        whole, boxes, texts = zip(*batch, strict=True)
        mask = torch.zeros(len(batch), SIZE, SIZE)
        for hidden, (left, top, right, bottom) in zip(mask, boxes, strict=True):
            hidden[top:bottom, left:right] = 1
        made = nodes.InpaintModelConditioning().encode(
            *stock.conditionings(texts), pixels(whole), stock.vae, mask, kept
        )
        blank = nodes.EmptyLatentImage().generate(SIZE, SIZE, len(batch))[0]
        return stock.sampled(*made[:2], made[2] if kept else blank, seed)

    return in_batches(draw, list(zip(wholes, holes, captions, strict=True)))


def in_batches(draw: Callable, items: list) -> list[np.ndarray]:
    """What `draw` makes of the items and a seed, BATCH at a time."""
    starts = range(0, len(items), BATCH)
    return [picture for start in starts for picture in draw(items[start : start + BATCH], SEED + start)]


def pixels(pictures) -> Tensor:
    """uint8 pictures as the host's nodes take them, (n, H, W, 3)."""
    return stacked(pictures).movedim(1, -1)


def hollow_score(picture: np.ndarray, scene: Scene) -> dict:
    """The reader's score of the picture with filled objects, and whether every object has the trait."""
    filled, hollow = read_hollow(picture)
    return {**score(filled, caption(scene)), "hollow": bool(hollow) and all(hollow)}


def told_score(picture: np.ndarray, scene: Scene) -> dict:
    """The reader's score, and the IoU of what is not background with the scene's objects."""
    told = render(scene, only_mask=True) > 0.5
    return {**score(picture, caption(scene)), "told iou": iou(object_mask(picture), told)}


def inpainting_score(picture: np.ndarray, scene: Scene, hole: Box) -> dict:
    """As `told_score`, and the mean RGB distance across the hole's border, here and in the truth."""
    return {**told_score(picture, scene), "seam": seam(picture, hole), "seam of the truth": seam(render(scene), hole)}


def seam(picture: np.ndarray, hole: Box) -> float:
    """Mean RGB distance of the pixels on both sides of the hole's border."""
    left, top, right, bottom = hole
    rows, columns = picture.astype(float), picture.astype(float).swapaxes(0, 1)
    sides = [(rows, top, left, right), (rows, bottom, left, right)]
    sides += [(columns, left, top, bottom), (columns, right, top, bottom)]
    steps = [np.linalg.norm(lines[at + 1, low:high] - lines[at - 2, low:high], axis=-1)
             for lines, at, low, high in sides if 0 < at < SIZE]  # fmt: skip
    return float(np.concatenate(steps).mean())


def other_object(scene: Scene, rng: random.Random) -> dict:
    """An object of another colour and shape than the scene's."""
    while True:
        (old,), (new,) = scene["objs"], sample_scene(rng, two=False)["objs"]
        if new["color"] not in (old["color"], scene["bg"]) and new["shape"] != old["shape"]:
            return new
