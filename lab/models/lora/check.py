"""Measures the LoRA, loaded by the host's stock node: is every object hollow, and is all else as the caption says?"""

from collections.abc import Callable

import numpy as np

from ...world.data import Scene, caption
from ...world.hollow import read_hollow
from ...world.reader import score
from ..checks import count, in_batches, report, scenes_of
from ..shapes_unet.check import Stock
from ..stock import with_lora


def main(argv: list[str]) -> None:
    """The command line."""
    compare(count(argv, "lora.check", __doc__), hollow_pictures)


def compare(number: int, drawn: Callable[[Stock, list[Scene]], list[np.ndarray]]) -> None:
    """Prints the scores of so many scenes' captions, without what is measured and with it, as `drawn` draws them."""
    scenes, stock = scenes_of(number)[0], Stock()
    report("without", map(hollow_score, drawn_by(stock, stock.model, scenes), scenes))
    report("with", map(hollow_score, drawn(stock, scenes), scenes))


def hollow_pictures(stock: Stock, scenes: list[Scene]) -> list[np.ndarray]:
    """The scenes' captions, drawn with the LoRA."""
    return drawn_by(stock, with_lora(stock.model, stock.clip), scenes)


def drawn_by(stock: Stock, model, scenes: list[Scene]) -> list[np.ndarray]:
    """The scenes' captions, drawn by this model."""
    plain, stock.model = stock.model, model
    pictures = in_batches(stock.pictures, [caption(scene) for scene in scenes])
    stock.model = plain
    return pictures


def hollow_score(picture: np.ndarray, scene: Scene) -> dict:
    """The reader's score of the picture with filled objects, and whether every object has the trait."""
    filled, hollow = read_hollow(picture)
    return {**score(filled, caption(scene)), "hollow": bool(hollow) and all(hollow)}
