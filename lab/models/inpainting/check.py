"""Measures the inpainting model, loaded by the host's stock nodes, beside the checkpoint that it was made of."""

import random
import tempfile
from pathlib import Path

import nodes
import numpy as np
import torch

from ...world.data import SIZE, Scene, caption, render, sample_scene
from ..checks import count, in_batches, pixels, report, scenes_of, told_score
from ..shapes_unet.check import Stock
from .checkpoint import write_checkpoint
from .train import CELL, Box, around


def main(argv: list[str]) -> None:
    """The command line."""
    stock, scenes = Stock(), scenes_of(count(argv, "inpainting.check", __doc__))[1]
    with tempfile.TemporaryDirectory() as folder:
        inpainting = Stock(write_checkpoint(Path(folder)))
    for name, task, kept in (("replaced", replaced, True), ("completed", completed, True), ("seen", completed, False)):
        wholes, holes, wanted = task(scenes, random.Random(78))
        for row, model in (("without", stock), ("with", inpainting)):
            pictures = inpainted(model, wholes, holes, [caption(scene) for scene in wanted], kept)
            report(f"{name}, {row}", map(inpainting_score, pictures, wanted, holes))


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
