"""Inpainting at equal model calls, on 48 scenes: RePaint and Blended beside LanPaint, diffusers' RePaint, the host."""

import random
import time
from functools import partial

import comfy.samplers
import numpy as np
import torch

from ..lab.comfy.runs import counted, encode_texts, host_guider, run_seeded, sigmas_of, with_pytorch_attention
from ..lab.models import stock
from ..lab.models.shapes_unet.diffusers_bridge import load as load_bridge
from ..lab.world.data import SIZE, caption, render, sample_scene
from ..lab.world.metrics import grown, iou, markdown_table, mse, object_mask
from ..lab.world.reader import read_image
from ..nodes.blended_diffusion import SteerBlendedSampler
from ..nodes.ddim import SteerDDIMSampler
from ..nodes.repaint import SteerRePaintSampler
from ..nodes.stitch import SteerStitch
from . import diffusers_repaint, inpainting, lanpaint
from .inpainting import PIXELS, cells
from .turns import to_bytes

SCENES, BATCH, CFG = 48, 16, 5.0
STEPS, RESAMPLES, JUMP, CALLS = 20, 10, 10, 110
LANPAINT_STEPS = 27  # 111 calls: 5 inner ones a step, fewer towards the end
APART = 24  # pixels from the hole from which on the decoder sees little of it
HOLES = (
    "The holes are whole latent pixels, and the latents in them are zero, for every method. Cleared in the picture: it "
    "is grey there too before it is encoded, so that nothing is known of what was there, and the latents round the "
    "hole are those of a picture with a grey patch. Cleared in the latents: the picture is encoded whole, as it is in "
    "most of the host's graphs, and the encoder has spread something of the hole to the latents round it."
)
CLEARED = {"in the picture": True, "in the latents": False}
BASE = "Steer RePaint"
STITCHED = "Steer RePaint, then Stitch"
DRAWS = 10_000  # of the scenes, for an interval


def run() -> str:
    model, clip, vae = stock.load()
    (model, calls), bridge, peer = counted(with_pytorch_attention(model)), load_bridge(), lanpaint.load()
    bridge.unet.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    methods = methods_of(model, clip, bridge, peer)
    tables = []
    for title, problem, columns in (
        ("A captioned object into an empty hole", inpainting.problem, ("background", "outside", "apart")),
        ("Half an object", halved, ("inside", "IoU", "outside", "apart")),
    ):
        columns = ("right", "count", *columns)
        problems = [problem(random.Random(index), two=index % 2 == 1) for index in range(SCENES)]
        for where, grey in CLEARED.items():
            results = measured(methods, problems, vae, calls, grey)
            rows = [row(*each, results[BASE], columns) for each in results.items()]
            others = [against(*each, results[BASE], columns) for each in results.items()
                      if each[0] not in (BASE, STITCHED)]  # fmt: skip
            tables.append(
                f"## {title}, cleared {where}\n\n{markdown_table(rows)}\n{BASE} against each, in dB (above 0: ours is "
                f"better):\n\n{markdown_table(others)}"
            )
    missing = "" if peer else f"\nLanPaint is not in the tables: {lanpaint.VARIABLE} does not name a checkout of it.\n"
    return (
        f"# Inpainting beside its peers\n\n{SCENES} scenes (half of two objects), cfg {CFG:g}, scheduler normal; all "
        f"methods use PyTorch's attention. {HOLES} RePaint, ours (eta 1, as published) and diffusers' "
        f"scheduler (eta 0, its default, and 1): {STEPS} steps, {RESAMPLES} resamples, jumps of {JUMP}; LanPaint: its "
        f"defaults with the host's euler, {LANPAINT_STEPS} steps; the others {CALLS} steps. Model calls are counted (a "
        "guider's call has two rows of the model). Over ours: the process's time over our RePaint's, in turns, the "
        "median of the batches.\n\nRight: the reader finds the object's colour and shape (count: and the asked number "
        "of objects in the picture). Outside: PSNR against the given picture outside the hole; apart: "
        f"{APART} pixels or more from it, where only the VAE's own loss is left. Background: in the hole, a latent "
        "pixel or more from what was painted, against the VAE round trip. Inside: the whole hole, against the round "
        "trip; IoU: what of the object is in the hole, with the truth. PSNR of the mean error. Then Stitch: RePaint's "
        "pictures through that node, feather 0. The second tables compare the mean errors over the scenes that both "
        "got right, with 95% intervals over the choice of scenes: "
        "an object that comes to lie at the hole's edge shows outside of it, through the decoder, and where nothing "
        "was painted nothing disturbs the background; a few scenes of such decide a difference of a dB.\n"
        f"{missing}\n" + "\n".join(tables)
    )


def halved(rng: random.Random, two: bool) -> dict:
    """A scene whose last object is half in the hole."""
    scene = sample_scene(rng, two)
    target = scene["objs"][-1]
    reach = target["r"] + inpainting.MARGIN
    rows, columns = np.mgrid[0:SIZE, 0:SIZE]
    down, right = rows - target["cy"], columns - target["cx"]
    half = rng.choice([down > 0, down < 0, right > 0, right < 0])
    hole = half & (abs(down) < reach) & (abs(right) < reach)
    if two:
        hole &= render({**scene, "objs": scene["objs"][:-1]}, only_mask=True) == 0
    return {"given": render(scene), "hole": cells(hole), "caption": caption(scene), "target": target, "count": 1 + two}


def methods_of(model, clip, bridge, peer) -> dict:
    """By name: what makes latents of (texts, latents, masks, seed)."""

    def hosted(sampler, steps, run=run_seeded):
        def method(texts, latents, masks, seed):
            guider = host_guider(model, encode_texts(clip, texts), encode_texts(clip, [""]), CFG)
            sigmas = sigmas_of(model, steps)
            return run(guider, sampler, sigmas, latents, masks, seed)

        return method

    euler, ancestral = (comfy.samplers.sampler_object(name) for name in ("euler", "euler_ancestral"))
    schedules = {eta: diffusers_repaint.scheduler(STEPS, RESAMPLES, JUMP, eta) for eta in (0.0, 1.0)}
    methods = {
        BASE: hosted(SteerRePaintSampler.execute(RESAMPLES, JUMP, 1.0)[0], STEPS),
        "Steer Blended, DDIM eta 1": hosted(SteerBlendedSampler.execute(SteerDDIMSampler.execute(1.0)[0], 0)[0], CALLS),
        "host masked, euler_ancestral": hosted(ancestral, CALLS),
    }
    methods |= {f"diffusers RePaint, eta {eta:g}": partial(diffusers_repaint.inpaint, bridge, schedule, CFG)
                for eta, schedule in schedules.items()}  # fmt: skip
    modes = ("Image First", "Prompt First") if peer else ()
    return methods | {f"LanPaint, {mode}": hosted(euler, LANPAINT_STEPS, partial(lanpaint.inpaint, peer, mode))
                      for mode in modes}  # fmt: skip


def measured(methods: dict, problems: list[dict], vae, calls: list[int], grey: bool) -> dict:
    """By method: each problem's figures, and each batch's seconds and calls."""
    pictures = torch.stack([torch.from_numpy(each["given"].copy()) for each in problems]).float() / 255
    holes = torch.stack([torch.from_numpy(each["hole"]) for each in problems]).float()
    latents, texts = inpainting.without_hole(vae, pictures, holes, grey), [each["caption"] for each in problems]
    masks = holes[:, None, ::PIXELS, ::PIXELS]
    round_trips = to_bytes(vae.decode(vae.encode(pictures)))
    results, stitched = {name: {"figures": [], "seconds": [], "calls": []} for name in methods}, []
    for turn, at in enumerate(range(0, len(problems), BATCH)):
        part = slice(at, at + BATCH)
        for name in list(methods)[:: -1 if turn % 2 else 1]:
            started, rows = time.process_time(), sum(calls)
            made = methods[name](texts[part], latents[part], masks[part], at)
            results[name]["seconds"].append(time.process_time() - started)
            results[name]["calls"].append((sum(calls) - rows) / 2 / len(made))
            decoded = vae.decode(made)
            results[name]["figures"] += map(judged, problems[part], round_trips[part], to_bytes(decoded))
            if name == BASE:
                kept = to_bytes(SteerStitch.execute(pictures[part], decoded, masks[part, 0], 0)[0])
                stitched += map(judged, problems[part], round_trips[part], kept)
    return results | {STITCHED: results[BASE] | {"figures": stitched}}


def judged(problem: dict, round_trip: np.ndarray, picture: np.ndarray) -> dict:
    target, hole, objects = problem["target"], problem["hole"], read_image(picture)["objs"]
    nearest = min(objects, key=lambda o: np.hypot(o["cx"] - target["cx"], o["cy"] - target["cy"]), default={})
    right, ink = all(nearest.get(key) == target[key] for key in ("color", "shape")), object_mask(picture)
    empty, apart = hole & ~grown(ink, PIXELS), ~grown(hole, APART)
    return {
        "right": right,
        "count": right and len(objects) == problem["count"],
        "IoU": iou(ink & hole, object_mask(round_trip) & hole),
        "background": mse(picture, round_trip, empty) if empty.any() else np.nan,
        "inside": mse(picture, round_trip, hole),
        "outside": mse(picture, problem["given"], ~hole),
        "apart": mse(picture, problem["given"], apart) if apart.any() else np.nan,
    }


def row(name: str, result: dict, base: dict, columns) -> dict:
    means = {key: np.nanmean([figures[key] for figures in result["figures"]]) for key in columns}
    shown = {key: f"{100 * value:.0f}%" if key in ("right", "count") else f"{value:.3f}" if key == "IoU" else
             f"{-10 * np.log10(value):.1f} dB" if value else "exact" for key, value in means.items()}  # fmt: skip
    ratio = np.median([a / b for a, b in zip(result["seconds"], base["seconds"], strict=True)])
    return {"method": name, "model calls": f"{np.mean(result['calls']):.0f}", **shown, "over ours": f"{ratio:.2f}"}


def against(name: str, result: dict, base: dict, columns) -> dict:
    """Ours against one other, on the scenes that both get right."""
    pairs = [each for each in zip(base["figures"], result["figures"], strict=True) if all(one["right"] for one in each)]
    columns = [key for key in columns if key not in ("right", "count", "IoU", "apart")]
    return {"method": name, "scenes": len(pairs)} | {
        key: gain(np.array([[one[key] for one in each] for each in pairs])) for key in columns
    }


def gain(errors: np.ndarray) -> str:
    """By how much the first of each two mean errors is below the second, in dB, with its bootstrapped 95% interval."""
    errors = errors[~np.isnan(errors).any(1)]
    rows = np.random.default_rng(0).integers(0, len(errors), (DRAWS, len(errors)))
    drawn, whole = (10 * np.log10(of[..., 1] / of[..., 0]) for of in (errors[rows].mean(1), errors.mean(0)))
    low, high = np.percentile(drawn, (2.5, 97.5))
    return f"{whole:+.1f} ({low:+.1f} to {high:+.1f})"
