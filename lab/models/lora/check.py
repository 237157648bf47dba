"""Measures the LoRA, loaded by the host's stock node: is every object hollow, and is all else as the caption says?"""

import numpy as np

from ...world.data import Scene, caption
from ...world.hollow import read_hollow
from ...world.reader import score
from ..checks import count, in_batches, report, scenes_of
from ..shapes_unet.check import Stock
from ..stock import with_lora


def main(argv: list[str]) -> None:
    """The command line."""
    scenes, stock = scenes_of(count(argv, "lora.check", __doc__))[0], Stock()
    plain = in_batches(stock.pictures, [caption(scene) for scene in scenes])
    report("without", map(hollow_score, plain, scenes))
    report("with", map(hollow_score, hollow_pictures(stock, scenes), scenes))


def hollow_pictures(stock: Stock, scenes: list[Scene]) -> list[np.ndarray]:
    """The scenes' captions, drawn with the LoRA."""
    plain, stock.model = stock.model, with_lora(stock.model, stock.clip)
    pictures = in_batches(stock.pictures, [caption(scene) for scene in scenes])
    stock.model = plain
    return pictures


def hollow_score(picture: np.ndarray, scene: Scene) -> dict:
    """The reader's score of the picture with filled objects, and whether every object has the trait."""
    filled, hollow = read_hollow(picture)
    return {**score(filled, caption(scene)), "hollow": bool(hollow) and all(hollow)}
