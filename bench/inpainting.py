"""Painting a captioned object into a hole of 64 scenes: the host's masked sampling, RePaint and Blended."""

import random

import comfy.samplers
import numpy as np
import torch

from ..lab.comfy.runs import encode_texts, run_seeded, sigmas_of
from ..lab.models import stock
from ..lab.world.data import SIZE, caption, render, sample_scene
from ..lab.world.metrics import grown, markdown_table, psnr
from ..lab.world.reader import read_image
from ..nodes.blended_diffusion import SteerBlendedSampler
from ..nodes.ddim import SteerDDIMSampler
from ..nodes.guidance import SteerCFGGuider
from ..nodes.repaint import SteerRePaintSampler
from .turns import to_bytes

SCENES, BATCH, CFG, STEPS = 64, 16, 5.0, 20
MARGIN = 12  # pixels round the object that belong to the hole
PIXELS = 8  # of a latent pixel
GREY = 0.5
APART = 24  # pixels from the hole from which on the decoder sees little of it


def run() -> str:
    model, clip, vae = stock.load()
    problems = [problem(random.Random(index), two=index % 2 == 1) for index in range(SCENES)]
    pictures = torch.stack([torch.from_numpy(p["given"].copy()) for p in problems]).float() / 255
    holes = torch.stack([torch.from_numpy(p["hole"]) for p in problems]).float()
    latents, texts = without_hole(vae, pictures, holes), [p["caption"] for p in problems]
    euler, ancestral = (comfy.samplers.sampler_object(name) for name in ("euler", "euler_ancestral"))
    repaint, calls = SteerRePaintSampler.execute(10, 10, 1.0)[0], 110
    blended = {name: SteerBlendedSampler.execute(inner, 0)[0] for name, inner in
               (("euler", euler), ("DDIM eta 1", SteerDDIMSampler.execute(1.0)[0]))}  # fmt: skip
    methods = [
        ("host masked, euler", euler, STEPS),
        ("Blended, euler", blended["euler"], STEPS),
        ("Blended, DDIM eta 1", blended["DDIM eta 1"], STEPS),
        ("RePaint", repaint, STEPS),
        ("host masked, euler", euler, calls),
        ("host masked, euler_ancestral", ancestral, calls),
        ("Blended, euler", blended["euler"], calls),
        ("Blended, DDIM eta 1", blended["DDIM eta 1"], calls),
    ]
    rows = [measured(problems, pictures, vae.decode(vae.encode(pictures)), "VAE round trip (nothing painted)", "", "")]
    for name, sampler, steps in methods:
        sigmas = sigmas_of(model, steps)
        results = torch.cat([
            run_seeded(guider_of(model, clip, texts[i : i + BATCH]), sampler, sigmas, latents[i : i + BATCH],
                   holes[i : i + BATCH, None], seed=i)
            for i in range(0, SCENES, BATCH)
        ])  # fmt: skip
        made = calls if name == "RePaint" else steps
        rows.append(measured(problems, pictures, vae.decode(results), name, steps, made))
    return (
        f"# Inpainting\n\n{SCENES} scenes (half with a second object beside the hole), the object under the hole "
        f"removed, its caption as the prompt, cfg {CFG:g}, scheduler normal; the same noise for all. {HOLES} "
        "Right: the reader finds the asked colour and shape inside the hole (and the asked number of objects in the "
        f"picture). PSNR against the given picture outside the hole, everywhere and from {APART} pixels away from it, "
        f"beyond what the decoder spreads.\n\n{markdown_table(rows)}"
    )


HOLES = (
    "The holes are whole latent pixels, and nothing is known of them: the picture is grey there before it is encoded, "
    "and its latents are zero there."
)


def without_hole(vae, pictures, holes, grey=True):
    """The latents, zero in the holes (batch, rows, columns), of pictures (batch, rows, columns, 3), made grey there."""
    given = torch.where(holes[..., None] > 0, torch.full_like(pictures, GREY), pictures) if grey else pictures
    latents = vae.encode(given)
    return torch.where(holes[:, None, ::PIXELS, ::PIXELS] > 0, torch.zeros_like(latents), latents)


def guider_of(model, clip, texts):
    return SteerCFGGuider.execute(model, encode_texts(clip, texts), encode_texts(clip, [""]), CFG, 0.0, 1.0, 1.0)[0]


def problem(rng: random.Random, two: bool) -> dict:
    """A scene whose last object is to be painted: the picture without it, the hole, the caption, and the object."""
    scene = sample_scene(rng, two)
    target = scene["objs"][-1]
    given = {**scene, "objs": scene["objs"][:-1]}
    reach = target["r"] + MARGIN
    rows, columns = np.mgrid[0:SIZE, 0:SIZE]
    hole = (abs(rows - target["cy"]) < reach) & (abs(columns - target["cx"]) < reach)
    if two:  # the other object stays whole
        hole &= render(given, only_mask=True) == 0
    return {"given": render(given), "hole": cells(hole), "caption": caption(scene), "target": target, "count": 1 + two}


def cells(hole: np.ndarray) -> np.ndarray:
    """What of a hole is whole latent pixels."""
    blocks = hole.reshape(SIZE // PIXELS, PIXELS, SIZE // PIXELS, PIXELS).all((1, 3))
    return blocks.repeat(PIXELS, 0).repeat(PIXELS, 1)


def measured(problems, given, pictures, name, steps, calls) -> dict:
    right = {"colour": 0, "shape": 0, "both": 0, "count": 0}
    near, far = [], []
    for item, before, after in zip(problems, given, pictures.clamp(0, 1), strict=True):
        found = read_image(to_bytes(after))["objs"]
        inside = [o for o in found if item["hole"][round(o["cy"]), round(o["cx"])]]
        colour, shape = (bool(inside) and inside[0][key] == item["target"][key] for key in ("color", "shape"))
        for key, value in zip(right, (colour, shape, colour and shape, len(found) == item["count"]), strict=True):
            right[key] += value
        kept = ~item["hole"]
        near.append(psnr(after, before, kept))
        apart = kept & ~grown(item["hole"], APART)
        if apart.any():  # a hole in the middle may leave nothing so far away
            far.append(psnr(after, before, apart))
    share = {key: f"{100 * value / len(problems):.0f}%" for key, value in right.items()}
    return {"method": name, "steps": steps, "model calls": calls, **share,
            "PSNR outside": f"{np.mean(near):.1f} dB", "PSNR apart": f"{np.mean(far):.1f} dB"}  # fmt: skip
