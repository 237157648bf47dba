"""Loads the CLIP pair with the host's stock nodes and lets it name the one object of fresh pictures.

By the largest cosine of 42 texts, "a red circle" and so on: for renders, the autoencoder's round trip (sigma 0), and
the shapes model's estimates from noise. `ranked`: of the n pictures a text is true of, the share among its best n.
"""

import argparse
import random
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ...weights import CLIP_TEXT, CLIP_VISION
from ...world.data import SHAPES, sample_scene
from ...world.pair_texts import NAMED, variants
from ..stock import load_clip_pair
from .pictures import Estimator, renders

SIGMAS = 0.0, 0.3, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0


@torch.inference_mode()
def main(argv: list[str]) -> None:
    """The command line."""
    parser = argparse.ArgumentParser("python -m lab.models clip.check", description=__doc__)
    parser.add_argument("--n", type=int, default=512, help="pictures of each kind")
    parser.add_argument("--folder", type=Path, default=CLIP_TEXT.parent, help="where the two files are")
    wanted = parser.parse_args(argv)
    torch.manual_seed(0)
    clip, vision = load_clip_pair(wanted.folder / CLIP_TEXT.name, wanted.folder / CLIP_VISION.name)
    read = [clip.encode_from_tokens(clip.tokenize(str(text)), return_pooled=True)[1] for text in NAMED]
    rng, estimate = random.Random(77), Estimator()
    scenes = [sample_scene(rng, two=False) for _ in range(wanted.n)]
    labels = torch.tensor([NAMED.index(variants(scene)["named"][0]) for scene in scenes])

    def report(name: str, pictures: Tensor) -> None:
        embedding = vision.encode_image(pictures.movedim(1, -1).float() / 255)["image_embeds"]
        cosine = F.normalize(embedding.float(), dim=-1) @ F.normalize(torch.cat(read).float(), dim=-1).T
        print(name, *(f"{key} {value:.3f}" for key, value in figures(cosine, labels).items()), flush=True)

    report("renders", renders(scenes))
    for sigma in SIGMAS:
        report(f"sigma {sigma}", estimate(scenes, [sigma] * len(scenes)))


def figures(cosine: Tensor, labels: Tensor) -> dict[str, float]:
    """Of cosines (pictures, NAMED): shares that are right, and mean cosines of the right and of the best wrong text."""
    best, right = cosine.argmax(1), F.one_hot(labels, len(NAMED)).bool()
    ranked = [right[cosine[:, text].topk(int(right[:, text].sum())).indices, text] for text in labels.unique()]
    out = {
        "both": best == labels,
        "color": best // len(SHAPES) == labels // len(SHAPES),
        "shape": best % len(SHAPES) == labels % len(SHAPES),
        "ranked": torch.cat(ranked),
        "cosine": cosine[right],
        "wrong": cosine.masked_fill(right, -1).amax(1),
    }
    return {key: value.float().mean().item() for key, value in out.items()}
