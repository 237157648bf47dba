"""Trains the depth network and writes its file, on fresh renders and on what the shapes model makes of noised scenes.

The second half of each batch, the model's estimates, is what guidance shows to the network. Needs the checkpoint.
"""

import argparse
import random
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from comfy.ldm.moge.geometry import normalized_view_plane_uv
from safetensors.torch import save_file
from torch import Tensor

from ...weights import DEPTH
from ...world.data import Scene
from ...world.depth import disparity
from ..clip.pictures import disturbed, estimates, renders, scenes_of
from ..fine_tuning import halved
from ..shapes_unet.train_vae import WORK
from ..training import Training, train
from .network import PICTURE, TOKENS, trainable

BATCH, LEARNING_RATE = 16, 1e-3
EDGES, RAYS = 0.5, 0.1  # weights of the error's slopes, and of the points' directions, beside the error


class Data:
    """Fresh renders and estimates, half of each, with the logarithm of how far away each pixel is."""

    def __init__(self, work: Path, count: int):
        self.scenes, self.pictures = estimates(work, count)
        self.rng = random.Random(6)

    def draw(self) -> tuple[Tensor, Tensor]:
        """Pictures (n, 3, PICTURE, PICTURE) in 0..1, and log distances (n, PICTURE, PICTURE)."""
        rows = torch.randint(len(self.scenes), (BATCH // 2,))
        fresh = scenes_of(BATCH // 2, self.rng.randrange(2**31))
        shown = disturbed(torch.cat([renders(fresh), self.pictures[rows]]).float() / 255)
        return sized(shown).clamp(0, 1), log_distance(fresh + [self.scenes[row] for row in rows])


def sized(pictures: Tensor) -> Tensor:
    """As the depth loss shows them to the network."""
    return F.interpolate(pictures, (PICTURE, PICTURE), mode="bicubic", antialias=True)


def log_distance(scenes: list[Scene]) -> Tensor:
    """The truth, (n, PICTURE, PICTURE)."""
    maps = torch.from_numpy(np.stack([disparity(scene) for scene in scenes])).float()
    return -F.interpolate(maps[:, None], (PICTURE, PICTURE), mode="bilinear")[:, 0].log()


def main(argv: list[str]) -> None:
    """The command line."""
    parser = argparse.ArgumentParser("python -m lab.models depth.train", description=__doc__)
    parser.add_argument("minutes", type=float, help="how long to train")
    parser.add_argument("--scenes", type=int, default=2000, help="estimates to train on")
    parser.add_argument("--work", type=Path, default=WORK, help="folder for the estimates")
    parser.add_argument("--file", type=Path, default=DEPTH, help="where the network goes")
    wanted = parser.parse_args(argv)
    torch.manual_seed(0)
    random.seed(0)
    wanted.work.mkdir(parents=True, exist_ok=True)
    data, network = Data(wanted.work, wanted.scenes), trainable()
    optimizer = torch.optim.AdamW(network.parameters(), LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.05, fused=True)
    training, rays = Training(network, [optimizer]), normalized_view_plane_uv(PICTURE, PICTURE)

    def loss(pictures: Tensor, wanted: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            points = network(pictures, TOKENS)["points"]
        far = points[..., 2:].float()
        error = far[..., 0].log() - wanted
        slopes = error.diff(dim=1).abs().mean() + error.diff(dim=2).abs().mean()
        return error.square().mean() + EDGES * slopes + RAYS * (points[..., :2] / far - rays).abs().mean()

    train(training, data, loss, wanted.minutes * 60, lambda: save_file(halved(training.ema), wanted.file))
