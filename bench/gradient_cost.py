"""What gradient guidance costs at the size of SD1.5 (random weights): plain CFG, to the estimate, through the model."""

import statistics
import time
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from unittest import mock

import comfy.model_management as management
import comfy.sd
import torch
from comfy.clip_vision import ClipVisionModel
from comfy.ldm.models.autoencoder import AutoencoderKL

from ..lab.comfy import runs
from ..lab.comfy.random_models import random_weights
from ..lab.comfy.runs import host_guider, noise_of
from ..lab.world.metrics import markdown_table
from ..nodes.gradient_guidance import SteerGradientGuider
from ..nodes.host.gradients import models
from ..nodes.host.gradients.model import Differentiable
from ..nodes.runs.clip_guidance import CLIPLoss
from ..nodes.runs.loss_terms import gradients_of
from ..nodes.runs.measurement import MeasurementLoss
from ..nodes.runs.palette import PaletteLoss
from ..samplers.core import SampleNoise
from ..samplers.measurement import Resize
from .attention_cost import EULER, levels_of, peak_bytes, random_texts, ratio, sd15

SIDE, CFG, CUTOUTS, TURNS = (64, 7.5, 8, 11) if torch.cuda.is_available() else (32, 7.5, 4, 3)
VAE = {"double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128,
       "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0}  # fmt: skip
VISION = {"hidden_size": 1024, "image_size": 224, "intermediate_size": 4096, "num_attention_heads": 16,
          "num_hidden_layers": 24, "patch_size": 14, "projection_dim": 768, "hidden_act": "quick_gelu",
          "num_channels": 3, "layer_norm_eps": 1e-5, "model_type": "clip_vision_model"}  # fmt: skip
PLAIN, OFF, ON = "plain CFG", "through_model off", "through_model on"
AGAIN, CLIP_OFF, CLIP_ON = f"{ON}, recomputed", f"CLIP, {OFF}", f"CLIP, {ON}"
ALONE = "decoder and CLIP alone"
MEASURED, THREE = "measurement", "measurement, CLIP and palette"


@dataclass(frozen=True)
class Square:
    """The squares of the estimate: a loss that costs nothing."""

    noisy = False
    patchers = ()

    def memory(self, shape):
        return 0.0

    def start(self, run, latent_format, differentiable):
        return lambda latent, sigma: latent.square().flatten(1).sum(1)


def run() -> str:
    compared = variants(sd15(), random_vae(), random_vision())
    peaks = {name: peak_bytes(once) / 2**20 for name, once in compared.items()}  # warms up, too
    seconds = {name: [] for name in compared}
    for turn in range(TURNS):
        for name in list(compared)[:: -1 if turn % 2 else 1]:
            started = time.perf_counter()
            compared[name]()
            seconds[name].append(time.perf_counter() - started)
    rows = [
        {
            "": name,
            "seconds a step": f"{statistics.median(seconds[name]):.3g}",
            "over plain CFG": f"{ratio(seconds[name], seconds[PLAIN]):.2f}",
            "peak MiB": f"{peaks[name]:.0f}",
        }
        for name in compared
    ]
    beyond = [(a - b) / c for a, b, c in zip(seconds[CLIP_OFF], seconds[ALONE], seconds[PLAIN], strict=True)]
    return (
        f"# Cost of gradient guidance\n\nSD1.5's UNet, its VAE and CLIP-ViT-L with random weights, one picture, "
        f"{SIDE}x{SIDE} latents, cfg {CFG}, one step of the host's euler, {CUTOUTS} cutouts. The rows without CLIP "
        f"have a loss that costs nothing, so that they show what the model costs; those of a "
        f"measurement have a picture of a quarter of the side. Times: medians of {TURNS} turns, in "
        "each of which every row runs once. Memory: the most that torch's allocator had given out at a time, beyond "
        f"the weights.\n\n{markdown_table(rows)}\nWith {CLIP_OFF}, a step less the decoder and CLIP alone takes "
        f"{statistics.median(beyond):.2f} of plain CFG's time."
    )


def variants(model, vae, vision) -> dict:
    """What is compared, by name: one step each."""
    noise = noise_of((1, 4, SIDE, SIDE))
    sigmas, plain = levels_of(model, 2)[:2], host_guider(model, *random_texts(2), CFG)
    target = noise_of((1, VISION["projection_dim"]), 2)
    clip = CLIPLoss(vision, vae, target, CUTOUTS)

    small = torch.rand(1, 2 * SIDE, 2 * SIDE, 3, generator=torch.Generator().manual_seed(3))
    measured, palette = MeasurementLoss(vae, small, 0.05, (Resize(),), None), PaletteLoss(vae, small, 32)

    def guided(*losses, through_model=False):
        guider = plain
        for loss in losses:
            guider = SteerGradientGuider.execute(guider, loss, 1.0, 0.0, 1.0, through_model)[0]
        return guider

    def step(guider):
        return runs.run(guider, EULER, sigmas, noise, seed=0)

    def recomputed():
        with mock.patch.object(models, "Differentiable", partial(Differentiable, recompute=True)):
            step(guided(Square(), through_model=True))

    others = {id(patcher): Differentiable(patcher) for patcher in clip.patchers}
    management.load_models_gpu([other.patcher for other in others.values()])
    there = noise.to(model.load_device)
    run = SimpleNamespace(known=there, mask=None, noise=lambda stream: SampleNoise(0, stream, there, there))
    alone = clip.start(run, model.model.latent_format, lambda p: others[id(p)])
    return {
        PLAIN: lambda: step(plain),
        OFF: lambda: step(guided(Square())),
        ON: lambda: step(guided(Square(), through_model=True)),
        AGAIN: recomputed,
        CLIP_OFF: lambda: step(guided(clip)),
        CLIP_ON: lambda: step(guided(clip, through_model=True)),
        MEASURED: lambda: step(guided(measured)),
        f"{MEASURED}, {ON}": lambda: step(guided(measured, through_model=True)),
        THREE: lambda: step(guided(measured, clip, palette)),
        f"{THREE}, {ON}": lambda: step(guided(measured, clip, palette, through_model=True)),
        ALONE: lambda: gradients_of("bench", [alone], there, 1.0),
    }


def random_vae():
    """SD1.5's VAE in the host."""
    return comfy.sd.VAE(sd=random_weights(lambda: AutoencoderKL(embed_dim=4, ddconfig=VAE)))


def random_vision():
    """CLIP-ViT-L's vision tower in the host."""
    vision = ClipVisionModel(VISION)
    vision.load_sd(random_weights(lambda: ClipVisionModel(VISION).model))
    return vision
