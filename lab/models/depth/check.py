"""Loads the depth network with the host's stock node and asks it how far away things are in scenes it never saw.

Against `lab/world/depth.py`, as the depth loss reads it: for renders, and for the shapes model's estimates of scenes
noised to a sigma (0: the autoencoder's round trip).
"""

import argparse
import random
from pathlib import Path

import comfy.model_management
import torch
from torch import Tensor

from ....nodes.host.depth import disparity
from ....samplers.depth import depth_distance
from ...weights import DEPTH
from ...world.data import SIZE, Scene, render, sample_scene
from ...world.metrics import aggregate
from ..clip.pictures import Estimator, renders
from ..stock import load_depth
from .network import PICTURE
from .train import log_distance

SIGMAS = 0.0, 0.3, 1.0, 2.0, 4.0, 8.0
BODY = 0.99  # an object's pixels are those that it covers by this much


@torch.inference_mode()
def main(argv: list[str]) -> None:
    """The command line."""
    parser = argparse.ArgumentParser("python -m lab.models depth.check", description=__doc__)
    parser.add_argument("--n", type=int, default=64, help="scenes, every other one with two objects")
    parser.add_argument("--file", type=Path, default=DEPTH, help="the network")
    wanted = parser.parse_args(argv)
    torch.manual_seed(0)
    rng, estimate, model = random.Random(78), Estimator(), load_depth(wanted.file)
    comfy.model_management.load_model_gpu(model.patcher)
    scenes = [sample_scene(rng, two=index % 2 == 1) for index in range(wanted.n)]

    def report(name: str, pictures: Tensor) -> None:
        maps, valid = disparity(model, lambda call: call(), pictures.float() / 255, (PICTURE, PICTURE))
        rows = [judged(*each) for each in zip(maps, valid, log_distance(scenes), scenes, strict=True)]
        print(name, *(f"{key} {value:.3f}" for key, value in aggregate(rows).items()), flush=True)

    report("renders", renders(scenes))
    for sigma in SIGMAS:
        report(f"sigma {sigma}", estimate(scenes, [sigma] * len(scenes)))


def judged(found: Tensor, valid: Tensor, truth: Tensor, scene: Scene) -> dict:
    """Of a map of 1 / distance.

    `error`: of the distance, as a share, mean over pixels; `aligned`: the depth loss from the truth; `wall`: of the
    distance's error on the background; `objects`: on objects; `order`: of two objects, whether the larger is nearer,
    only where the radii differ by a pixel.
    """
    off = (-found.log() - truth).exp().sub(1).abs()
    covers = [_covered({**scene, "objs": [obj]}) for obj in scene["objs"]]
    out = {
        "error": off.mean().item(),
        "aligned": depth_distance(found[None], (-truth).exp()[None], valid[None]).item(),
        "wall": off[_covered(scene, outside=True)].mean().item(),
        "objects": off[torch.stack(covers).any(0)].mean().item(),
    }
    sizes = [obj["r"] for obj in scene["objs"]]
    if len(sizes) == 2 and abs(sizes[0] - sizes[1]) > 1:
        first, second = (found[cover].mean().item() for cover in covers)
        out["order"] = float((first > second) == (sizes[0] > sizes[1]))
    return out


def _covered(scene: Scene, outside: bool = False) -> Tensor:
    """Where its objects are, or where they are not, (PICTURE, PICTURE) of True and False."""
    cover = torch.from_numpy(render(scene, only_mask=True, size=SIZE)).float()[None, None]
    cover = torch.nn.functional.interpolate(cover, (PICTURE, PICTURE), mode="bilinear")[0, 0]
    return cover < 1 - BODY if outside else cover > BODY
