"""Loads the joint checkpoint with the host's stock nodes, samples, reads the pictures back and scores them.

Prints the figures as JSON and writes the sheet of sixteen captions. `--choose` compares values of cfg instead, on
captions of its own, so that what is reported was not chosen by.
"""

import argparse
import json
from pathlib import Path

import comfy.utils

from ...weights import FLUX
from ..shapes_unet.check import Stock, check_random, check_sheet
from ..stock import load_flux

SHEET_FILE = Path(__file__).with_name("sheet.png")
CHOSEN_BY = 77  # seed of the captions that cfg is chosen by
KINDS = (("one", False), ("two", True))


class FluxStock(Stock):
    """The joint checkpoint behind the host's stock nodes."""

    def __init__(self, checkpoint: Path = FLUX, steps: int = 20, cfg: float = 3.0):
        self.model, self.clip, self.vae = load_flux(checkpoint)
        self.sampler, self.steps, self.cfg = "euler", steps, cfg


def main(argv: list[str]) -> None:
    """The command line."""
    wanted = _arguments(argv)
    comfy.utils.PROGRESS_BAR_ENABLED = False
    stock = FluxStock(wanted.checkpoint, wanted.steps, wanted.cfg)
    if wanted.choose:
        results = choose(stock, wanted.choose, wanted.n)
    else:
        results = {"sheet": check_sheet(stock, wanted.sheet)}
        results |= {name: check_random(stock, two, wanted.n) for name, two in KINDS}
    print(json.dumps(results, indent=1))


def choose(stock: FluxStock, cfgs: list[float], count: int) -> dict:
    """The share of pictures with everything right, by cfg and kind."""
    rates = {}
    for cfg in cfgs:
        stock.cfg = cfg
        rates[cfg] = {name: check_random(stock, two, count, CHOSEN_BY)["all"] for name, two in KINDS}
    return rates


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m lab.models shapes_flux.check", description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=FLUX)
    parser.add_argument("--n", type=int, default=64, help="random captions of each kind to score")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--cfg", type=float, default=3.0)
    parser.add_argument("--choose", type=float, nargs="+", metavar="CFG", help="values to compare")
    parser.add_argument("--sheet", type=Path, default=SHEET_FILE, help="where the sheet goes")
    return parser.parse_args(argv)
