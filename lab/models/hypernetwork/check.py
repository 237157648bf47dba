"""Measures the hypernetwork, loaded by the host's stock node: are all objects hollow, and all else as captions say?"""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from ...world.data import Scene
from ..checks import count
from ..lora.check import compare, drawn_by
from ..shapes_unet.check import Stock
from ..stock import with_hypernetwork
from .network import write_hypernetwork


def main(argv: list[str]) -> None:
    """The command line."""
    compare(count(argv, "hypernetwork.check", __doc__), hollow_pictures)


def hollow_pictures(stock: Stock, scenes: list[Scene]) -> list[np.ndarray]:
    """The scenes' captions, drawn with the hypernetwork."""
    with TemporaryDirectory() as folder:
        model = with_hypernetwork(stock.model, write_hypernetwork(Path(folder)))
    return drawn_by(stock, model, scenes)
