"""Trains the shapes model to inpaint: mask and torn picture are inputs too. Writes what that adds to its weights.

Goes on from its file when there is one.

Five input channels more, which start at zero, and low-rank additions to all other matrices and kernels of the UNet.
"""

import random

import numpy as np
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from ...weights import INPAINTING_ADDITIONS
from ...world.data import SIZE, Scene, render
from ..fine_tuning import Base, arguments, halved, scenes_of, train
from ..low_rank import LowRank, attach, halves, kohya_key, kohya_state
from ..shapes_unet.network import make_host_trainable
from .checkpoint import FIRST

RANK, BATCH, LEARNING_RATE, CAPTION_DROPOUT = 16, 16, 2e-3, 0.1
CELL = 8  # pixels of a latent: holes are whole latents
AROUND_OBJECT = 0.5  # of the holes lie around an object, the others anywhere
GRAY = 128  # what the host paints holes with
Box = tuple[int, int, int, int]


def main(argv: list[str]) -> None:
    """The command line."""
    wanted = arguments(argv, "inpainting.train", __doc__, INPAINTING_ADDITIONS)
    torch.manual_seed(0)
    make_host_trainable()
    base, scenes, rng = Base(), scenes_of(wanted.scenes, 12), random.Random(13)
    holes = [hole(scene, rng) for scene in scenes]
    latents = base.latents(wanted.work / f"plain_{wanted.scenes}.safetensors", map(render, scenes))
    torn = base.latents(wanted.work / f"holes_{wanted.scenes}.safetensors", map(with_hole, scenes, holes))
    beside = torch.cat([latent_masks(holes), torn], 1)
    additions = attach(base.unet, RANK, but=FIRST.removesuffix(".weight"))
    first = widened(base.unet)
    if wanted.file.exists():
        _go_on(first, additions, load_file(wanted.file))

    def loss() -> Tensor:
        rows, context = base.drawn(scenes, BATCH, CAPTION_DROPOUT)

        def eps(x: Tensor, t: Tensor) -> Tensor:
            return base.unet(torch.cat([x, beside[rows]], 1), t, context=context, transformer_options={})

        return base.schedule.loss(latents[rows], eps, noisier=True)

    train([first.weight, *halves(additions)], loss, wanted.minutes, LEARNING_RATE)
    save_file({**kohya_state(additions), **halved({FIRST: first.weight})}, wanted.file)


def hole(scene: Scene, rng: random.Random) -> Box:
    """A rectangle of whole latents (left, top, right, bottom), in pixels."""
    if rng.random() < AROUND_OBJECT:
        return around(rng.choice(scene["objs"]), rng)
    (left, right), (top, bottom) = (_anywhere(rng) for _ in range(2))
    return left, top, right, bottom


def around(obj: dict, rng: random.Random) -> Box:
    """A hole that hides the object."""
    (left, right), (top, bottom) = (_side_to_side(obj[axis], obj["r"], rng) for axis in ("cx", "cy"))
    return left, top, right, bottom


def with_hole(scene: Scene, box: Box) -> np.ndarray:
    """The scene's picture with the hole painted over, as the host's InpaintModelConditioning does."""
    picture, (left, top, right, bottom) = render(scene).copy(), box
    picture[top:bottom, left:right] = GRAY
    return picture


def latent_masks(holes: list[Box]) -> Tensor:
    """(n, 1, 16, 16), 1 in the hole."""
    masks = torch.zeros(len(holes), 1, SIZE // CELL, SIZE // CELL)
    for mask, (left, top, right, bottom) in zip(masks, holes, strict=True):
        mask[:, top // CELL : bottom // CELL, left // CELL : right // CELL] = 1
    return masks


def widened(unet: UNetModel) -> torch.nn.Conv2d:
    """The UNet's first convolution, now with five input channels more and learning."""
    first = unet.input_blocks[0][0]
    more = first.weight.new_zeros(len(first.weight), 5, 3, 3)
    first.weight = torch.nn.Parameter(torch.cat([first.weight, more], 1))
    first.in_channels = first.weight.shape[1]
    return first


def _go_on(first: torch.nn.Conv2d, additions: dict[str, LowRank], state: dict[str, Tensor]) -> None:
    with torch.no_grad():
        first.weight.copy_(state[FIRST])
        for name, addition in additions.items():
            for half in ("up", "down"):
                getattr(addition, half).copy_(state[f"{kohya_key(name)}.lora_{half}.weight"])


def _side_to_side(centre: float, r: float, rng: random.Random) -> tuple[int, int]:
    """Of an object, with up to three latents to spare on each side."""
    low = int((centre - r) // CELL) - rng.randint(0, 3)
    high = int(-(-(centre + r) // CELL)) + rng.randint(0, 3)
    return max(0, low) * CELL, min(SIZE // CELL, high) * CELL


def _anywhere(rng: random.Random) -> tuple[int, int]:
    length = rng.randint(4, 14)
    start = rng.randint(0, SIZE // CELL - length)
    return start * CELL, (start + length) * CELL
