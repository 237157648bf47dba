"""Reconstruction of 32 pictures by inversion, PNG in, PNG out, 50 steps; two peers on the same weights.

The peers are diffusers' inversion, and the host's euler over flipped sigmas (the unsampler trick).
"""

import random
import time

import comfy.samplers
import numpy as np
import torch
from comfy_extras.nodes_custom_sampler import FlipSigmas
from diffusers import DDIMInverseScheduler, DDIMScheduler

from ..lab.comfy import runs
from ..lab.comfy.runs import counted, encode_texts, host_guider, sigmas_of, with_pytorch_attention
from ..lab.models import stock
from ..lab.models.shapes_unet.diffusers_bridge import LATENT_SCALE, SCHEDULER
from ..lab.models.shapes_unet.diffusers_bridge import load as load_bridge
from ..lab.world.data import caption, render, sample_scene
from ..lab.world.metrics import markdown_table, psnr
from ..nodes.ddim import SteerDDIMSampler
from ..nodes.inversion import SteerDDIMInversion
from ..nodes.null_text import SteerNullText
from .turns import to_bytes

PICTURES, BATCH, STEPS, CFG = 32, 8, 50, 7.5
METHODS = {  # name: (cfg, refine, negative and, where not STEPS, steps)
    "plain, cfg 1": (1.0, 0, "empty"),
    "plain, cfg 1, 100 steps": (1.0, 0, "empty", 100),
    "refined, cfg 1": (1.0, 5, "empty"),
    "plain, then cfg 7.5": (CFG, 0, "empty"),
    "plain, inverted at cfg 7.5 too": (CFG, 0, "empty, inverted with"),
    "negative-prompt inversion, cfg 7.5": (CFG, 0, "source"),
    "refined, negative-prompt inversion, cfg 7.5": (CFG, 5, "source"),
    "null-text, cfg 7.5": (CFG, 0, "null-text"),
}
UNSAMPLER = {"unsampler, cfg 1": STEPS, "unsampler, cfg 1, 100 steps": 100}


def run() -> str:
    model, clip, vae = stock.load()
    scenes = [sample_scene(random.Random(5000 + index)) for index in range(PICTURES)]
    problems = [problem(clip, vae, scene) for scene in scenes]
    rows, ways = [], {name: (reconstruct, way) for name, way in METHODS.items()}
    for name, (way, settings) in (ways | {name: (unsampled, (steps,)) for name, steps in UNSAMPLER.items()}).items():
        (watched, calls), values, seconds = counted(model), [], 0.0
        for given in problems:
            started = time.perf_counter()
            latent = way(watched, given, *settings)
            seconds += time.perf_counter() - started
            values.append(psnr(to_bytes(vae.decode(latent)[0]), given["round_trip"]))
        rows.append(row(name, values, sum(calls) / PICTURES, seconds / PICTURES))
    peer, beside = beside_diffusers(model, problems, vae)
    return (
        f"# Inversion\n\n{PICTURES} held-aside pictures (8 bits in, 8 bits out), their captions as prompts, {STEPS} "
        "steps, scheduler ddim_uniform (diffusers' timesteps); PSNR of the picture sampled back against the VAE round "
        "trip. Unsampler: the host's euler without noise over the sigmas from FlipSigmas, then down them. Model rows "
        "are UNet evaluations of one picture, inversion and sampling together (backward passes not counted).\n\n"
        + markdown_table([*rows, peer])
        + f"\n{beside}"
    )


def problem(clip, vae, scene) -> dict:
    pixels = torch.from_numpy(render(scene).copy())[None].float() / 255
    latent = vae.encode(pixels)
    source, empty = (encode_texts(clip, [text]) for text in (caption(scene), ""))
    return {"latent": latent, "round_trip": to_bytes(vae.decode(latent)[0]), "source": source, "empty": empty,
            "captions": [caption(scene)]}  # fmt: skip


def reconstruct(model, given, cfg, refine, negative, steps=STEPS):
    """The latent sampled back."""
    sigmas = sigmas_of(model, steps, "ddim_uniform")
    inverted_at = cfg if negative == "empty, inverted with" else 1.0
    guider = host_guider(model, given["source"], given["empty"], inverted_at)
    latent, noise, inversion = SteerDDIMInversion.execute(
        guider, sigmas, {"samples": given["latent"]}, refine, 1e-4, check=False
    ).args
    conditioning = given["source"] if negative == "source" else given["empty"]
    if negative == "null-text":
        conditioning = SteerNullText.execute(model, given["source"], given["empty"], cfg, inversion, 10, 0.01, 1e-5)[0]
    guider = host_guider(model, given["source"], conditioning, cfg)
    ddim, start = SteerDDIMSampler.execute(0.0)[0], noise.generate_noise(latent)
    return runs.run(guider, ddim, sigmas, start, latent["samples"], seed=0)


def unsampled(model, given, steps):
    """The latent sampled back by the unsampler trick."""
    guider, sigmas = host_guider(model, given["source"], given["empty"], 1.0), sigmas_of(model, steps, "ddim_uniform")
    euler, none = comfy.samplers.sampler_object("euler"), torch.zeros_like(given["latent"])
    noisy = runs.run(guider, euler, FlipSigmas.execute(sigmas)[0], none, given["latent"], seed=0)
    return runs.run(guider, euler, sigmas, none, noisy, seed=0)


def diffusers_back(bridge, given):
    """DDIMInverseScheduler, then DDIMScheduler, in the loop of diffusers' own pipelines, on the same weights."""
    settings = {**SCHEDULER, "set_alpha_to_one": False, "steps_offset": 1}
    context, z = bridge.encode_text(given["captions"]), given["latent"] * LATENT_SCALE
    for scheduler in (DDIMInverseScheduler(**settings), DDIMScheduler(**settings)):
        scheduler.set_timesteps(STEPS)
        for t in scheduler.timesteps:
            z = scheduler.step(bridge.unet(z, t, context).sample, t, z).prev_sample
    return z / LATENT_SCALE


def beside_diffusers(model, problems, vae) -> tuple[dict, str]:
    """diffusers' row, and plain inversion timed in turns with it, alone and in batches."""
    bridge, same = load_bridge(), with_pytorch_attention(model)
    with torch.inference_mode():
        started = time.perf_counter()
        values = [psnr(to_bytes(vae.decode(diffusers_back(bridge, given))[0]), given["round_trip"])
                  for given in problems]  # fmt: skip
        seconds = (time.perf_counter() - started) / len(problems)
        batches = [together(problems[at : at + BATCH]) for at in range(0, PICTURES, BATCH)]
        ratios = {
            (which, size): seconds_over(bridge, ours, given)
            for size, given in (("one picture", problems[::4]), (f"{BATCH} pictures", batches))
            for which, ours in (("the same attention", same), ("the host's default attention on CPUs", model))
        }
    rows = [{"": which, "at a time": size, "seconds over diffusers'": f"{ratios[which, size]:.3f}"}
            for which, size in ratios]  # fmt: skip
    text = (
        "Plain inversion and sampling back, timed in turns with diffusers' on the same pictures (median): with the "
        "attention that diffusers uses, PyTorch's, which is the host's default on GPUs (and on CPUs with "
        f"`--use-pytorch-cross-attention`), and with the host's default on CPUs.\n\n{markdown_table(rows)}"
    )
    return row("diffusers, plain, cfg 1", values, 2 * STEPS, seconds), text


def together(problems: list[dict]) -> dict:
    """Several pictures as one batch, each with its own caption."""
    texts = {name: [[torch.cat([given[name][0][0] for given in problems]), {}]] for name in ("source", "empty")}
    captions = [caption for given in problems for caption in given["captions"]]
    return {"latent": torch.cat([given["latent"] for given in problems]), "captions": captions, **texts}


def seconds_over(bridge, model, problems: list[dict]) -> float:
    """Our seconds over diffusers', the median over the pictures; each goes first in turn."""
    ratios = []
    for turn, given in enumerate([problems[0], *problems]):  # the first again: it warms up
        spent = {}
        for name in ("ours", "theirs")[:: -1 if turn % 2 else 1]:
            started = time.perf_counter()
            if name == "ours":
                reconstruct(model, given, *METHODS["plain, cfg 1"])
            else:
                diffusers_back(bridge, given)
            spent[name] = time.perf_counter() - started
        ratios.append(spent["ours"] / spent["theirs"])
    return float(np.median(ratios[1:]))


def row(name, values, rows, seconds) -> dict:
    return {
        "method": name,
        "PSNR mean": f"{np.mean(values):.1f} dB",
        "median": f"{np.median(values):.1f} dB",
        "worst": f"{np.min(values):.1f} dB",
        "model rows": f"{rows:.0f}",
        "seconds": f"{seconds:.2f}",
    }
