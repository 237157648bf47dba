"""What fitting a VAE of SD1.x's size to one picture takes: seconds and memory, kept activations and recomputed ones."""

from functools import partial
from unittest.mock import patch

import torch

from ..lab.comfy.random_models import random_kl
from ..lab.comfy.runs import noise_of
from ..lab.world.metrics import markdown_table
from ..nodes.host import vae as host_vae
from ..nodes.host.gradients.model import Differentiable
from ..nodes.reconstruct import SteerReconstructDecoder, SteerReconstructLatent
from .background import timed

SIZES, CHANNELS, UPDATES = (256, 512), 128, 1
NODES = {"decoder": (SteerReconstructDecoder, 1e-4), "latent": (SteerReconstructLatent, 0.1)}


def run() -> str:
    rows = []
    for size in SIZES:
        vae = random_kl(CHANNELS)
        latent = noise_of((1, 4, size // 8, size // 8))
        _, seconds, memory = timed(vae.decode, latent)
        rows.append(row(size, "decoding", "", seconds, seconds, memory, ""))
        for name in NODES:
            needed = host_vae.memory_needed(vae, latent.shape, name == "decoder") / 2**20
            for again in (False, True) if size == SIZES[0] else (True,):
                _, taken, memory = timed(fitted, vae, latent, name, again)
                seconds, before = timed(vae.decode, latent)[1], seconds
                kind, decoding = "recomputed" if again else "kept", (before + seconds) / 2
                # the last picture is decoded without a way back
                rows.append(row(size, name, kind, (taken - decoding) / UPDATES, decoding, memory, f"{needed:.0f}"))
    return f"{TEXT}\n{markdown_table(rows)}"


TEXT = """# Reconstruction at SD1.x's size

AutoencoderKL with random weights, in float32. Seconds of a decoding and of one update (of 75), with how many decodings
that is (the mean of one before and one after); by how much the process's memory rose, and what the node reckons before
it starts, which is for activations that are computed again. Where there is room for them they are kept.
"""


def fitted(vae, latent, name: str, again: bool):
    size = latent.shape[-1] * 8
    node, rate = NODES[name]
    source, mask = torch.rand(1, size, size, 3), torch.zeros(1, size, size)
    mask[:, : size // 2] = 1
    with patch.object(host_vae, "Differentiable", partial(Differentiable, recompute=again)):
        return node.execute(vae, source, {"samples": latent}, mask, UPDATES, rate)


def row(size, name, kind, seconds, decoding, memory, reckoned) -> dict:
    return {
        "size": f"{size}x{size}",
        "what": name,
        "activations": kind,
        "seconds": f"{seconds:.0f}",
        "decodings": f"{seconds / decoding:.1f}",
        "peak MiB": f"{memory:.0f}",
        "reckoned MiB": reckoned,
    }
