"""LanPaint (Zheng et al. 2025, arXiv:2502.03491), run by its own node in this process, where LANPAINT_PATH says it is.

LANPAINT_PATH is a checkout of https://github.com/scraed/LanPaint; nothing of it is in this repository.
"""

import importlib.util
import os
import sys
from pathlib import Path

import torch

VARIABLE, PACKAGE = "LANPAINT_PATH", "LanPaint"
INNER, LAMBDA, STEP_SIZE = 5, 5.0, 0.2  # its defaults


class Noise:
    """A host NOISE."""

    def __init__(self, seed: int):
        self.seed = seed

    def generate_noise(self, latent: dict):
        return torch.randn(latent["samples"].shape, generator=torch.Generator().manual_seed(self.seed))


def load():
    """Its nodes; None when LANPAINT_PATH is not set. ValueError when LanPaint is not there."""
    given = os.environ.get(VARIABLE)
    if not given:
        return None
    folder = Path(given) / "src" / PACKAGE
    if not (folder / "nodes.py").is_file():
        raise ValueError(f"{VARIABLE} is {given}, which has no src/{PACKAGE}/nodes.py; give a checkout of LanPaint")
    spec = importlib.util.spec_from_file_location(
        PACKAGE, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    sys.modules[PACKAGE] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[PACKAGE])
    return importlib.import_module(f"{PACKAGE}.nodes")


def inpaint(nodes, mode: str, guider, sampler, sigmas, latents, masks, seed: int):
    """Its SamplerCustomAdvanced at its defaults, with the noise of the seed."""
    torch.manual_seed(seed)  # its inner steps draw from torch's own generator
    given = {"samples": latents, "noise_mask": masks}
    node = nodes.LanPaint_SamplerCustomAdvanced()
    return node.sample(Noise(seed), guider, sampler, sigmas, given, INNER, LAMBDA, STEP_SIZE, mode)[0]["samples"]
