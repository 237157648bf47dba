"""Null-text optimisation as published, restated step by step on the same model, and ours: calls, seconds, quality."""

import random
import time

import comfy.samplers
import torch

from ..lab.comfy import runs
from ..lab.comfy.runs import encode_texts, host_guider, sigmas_of
from ..lab.models import stock
from ..lab.world.data import caption, render, sample_scene
from ..lab.world.metrics import aggregate, markdown_table, psnr
from ..nodes.host.conditioning import windows
from ..nodes.host.gradients.tensors import gradients
from ..nodes.inversion import SteerDDIMInversion
from ..nodes.null_text import SteerNullText
from ..nodes.runs.null_text import with_branches

PICTURES, STEPS, CFG = 4, 50, 7.5


def run() -> str:
    model, clip, vae = stock.load()
    methods = {"cfg 1": [], "cfg 7.5, empty negative": [], "null-text as published": [],
               "SteerNullText": []}  # fmt: skip
    for index in range(PICTURES):
        scene = sample_scene(random.Random(3000 + index))
        for name, row in measured(model, clip, vae, scene).items():
            methods[name].append(row)
    rows = [{"method": name, **{key: shown(key, value) for key, value in aggregate(rows).items()}}
            for name, rows in methods.items()]  # fmt: skip
    ours, theirs = (aggregate(methods[name]) for name in ("SteerNullText", "null-text as published"))
    ratios = {key: ours[key] / theirs[key] for key in ("forward", "backward", "seconds")}
    return (
        f"# Null-text\n\n{PICTURES} pictures, plain DDIM inversion at cfg 1 in {STEPS} steps, sampled back with the "
        "host's euler; means. PSNR is against the VAE's round trip of the picture. Forward and backward are passes of "
        "one row through the model in the optimisation.\n\n"
        f"{markdown_table(pad(rows))}\nOurs over the published: "
        + ", ".join(f"{key} {value:.2f}" for key, value in ratios.items())
        + "."
    )


def shown(key: str, value: float) -> str:
    return f"{value:.2f}" if key == "PSNR, dB" else f"{value:.0f}"


def pad(rows: list[dict]) -> list[dict]:
    """Every row with every column."""
    columns = dict.fromkeys(key for row in rows for key in row)
    return [{key: row.get(key, "") for key in columns} for row in rows]


def measured(model, clip, vae, scene) -> dict[str, dict]:
    """The figures of each method on one picture."""
    picture = torch.from_numpy(render(scene).copy()).float()[None] / 255
    positive, negative = encode_texts(clip, [caption(scene)]), encode_texts(clip, [""])
    sigmas = sigmas_of(model, STEPS, "ddim_uniform")
    encoded = {"samples": vae.encode(picture)}
    round_trip = vae.decode(encoded["samples"])[0].clamp(0, 1)
    latent, noise, inversion = SteerDDIMInversion.execute(
        host_guider(model, positive, positive, 1.0), sigmas, encoded, 0, 1e-4
    ).args

    def quality(samples) -> dict:
        return {"PSNR, dB": psnr(vae.decode(samples)[0].clamp(0, 1), round_trip)}

    def sampled(negative, cfg) -> dict:
        guider, euler = host_guider(model, positive, negative, cfg), comfy.samplers.sampler_object("euler")
        start = noise.generate_noise(latent)
        return quality(runs.run(guider, euler, sigmas, start, latent["samples"], seed=0))

    found = {"cfg 1": sampled(negative, 1.0)}
    found["cfg 7.5, empty negative"] = sampled(negative, CFG)
    for name, method in (("null-text as published", published), ("SteerNullText", ours)):
        started, count = time.perf_counter(), Passes()
        optimised = method(count.on(model), positive, negative, inversion, count)
        seconds = time.perf_counter() - started
        found[name] = {**sampled(optimised, CFG), "forward": count.forward, "backward": count.backward,
                       "seconds": seconds}  # fmt: skip
    return found


class Passes:
    """Rows that go through a model, forwards, and backwards."""

    def __init__(self):
        self.forward = self.backward = 0

    def on(self, model):
        """A clone of the model that counts."""

        def backward(gradient):
            self.backward += gradient.shape[0]

        def wrapper(apply_model, args):
            self.forward += args["input"].shape[0]
            output = apply_model(args["input"], args["timestep"], **args["c"])
            if output.requires_grad:
                output.register_hook(backward)
            return output

        model = model.clone()
        model.set_model_unet_function_wrapper(wrapper)
        return model


def ours(model, positive, negative, inversion, count):
    return SteerNullText.execute(model, positive, negative, CFG, inversion, 10, 0.01, 1e-5)[0]


def published(model, positive, negative, inversion, count):
    """The loop of the authors' notebook (arXiv:2211.09794), with its losses in their units and torch's Adam."""
    embeddings = []

    def step(x, u, c, sigma, next_sigma):
        return inversion.law.step(x, u + CFG * (c - u), sigma, next_sigma)

    def work(branches):
        embedding, x = branches.embedding(1), inversion.latents[0]
        for i in range(STEPS):
            sigma, next_sigma = inversion.sigmas[i : i + 2]
            pivot = inversion.latents[i + 1]
            with gradients():
                embedding = embedding.detach().clone().requires_grad_()
                optimizer = torch.optim.Adam([embedding], lr=1e-2 * (1.0 - i / 100.0))
                with torch.no_grad():
                    c = branches.conditional(x, sigma)
                for _ in range(10):
                    u = branches.unconditional(x, sigma, embedding)
                    loss = ((step(x, u, c, sigma, next_sigma) - pivot) ** 2).mean() / (1.0 + next_sigma**2)
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    if loss.item() < 1e-5 + i * 2e-5:
                        break
                with torch.no_grad():
                    u, c = branches.unconditional(x, sigma, embedding), branches.conditional(x, sigma)
                    x = step(x, u, c, sigma, next_sigma)
            embeddings.append(embedding.detach())

    with_branches(model, positive, negative, inversion, work)
    return windows(embeddings, inversion.sigmas, dict(negative[0][1]))
