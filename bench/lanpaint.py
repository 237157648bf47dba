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
    from ..lab.comfy.runs import Noise, noise_of  # which import the host

    torch.manual_seed(seed)  # its inner steps draw from torch's own generator
    given = {"samples": latents, "noise_mask": masks}
    noise = Noise(noise_of(latents.shape, seed), seed)
    node = nodes.LanPaint_SamplerCustomAdvanced()
    return node.sample(noise, guider, sampler, sigmas, given, INNER, LAMBDA, STEP_SIZE, mode)[0]["samples"]
