"""Measures the hypernetwork, loaded by the host's stock node: are all objects hollow, and all else as captions say?"""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from ...world.data import Scene, caption
from ..checks import count, in_batches, report, scenes_of
from ..lora.check import hollow_score
from ..shapes_unet.check import Stock
from ..stock import with_hypernetwork
from .network import write_hypernetwork


def main(argv: list[str]) -> None:
    """The command line."""
    scenes, stock = scenes_of(count(argv, "hypernetwork.check", __doc__))[0], Stock()
    plain = in_batches(stock.pictures, [caption(scene) for scene in scenes])
    report("without", map(hollow_score, plain, scenes))
    report("with", map(hollow_score, hollow_pictures(stock, scenes), scenes))


def hollow_pictures(stock: Stock, scenes: list[Scene]) -> list[np.ndarray]:
    """The scenes' captions, drawn with the hypernetwork."""
    plain = stock.model
    with TemporaryDirectory() as folder:
        stock.model = with_hypernetwork(stock.model, write_hypernetwork(Path(folder)))
    pictures = in_batches(stock.pictures, [caption(scene) for scene in scenes])
    stock.model = plain
    return pictures
