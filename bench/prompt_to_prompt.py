"""Swapping one word of 64 generated scenes, and of real pictures: Prompt-to-Prompt against a new prompt."""

import random

import comfy.samplers
import numpy as np
import torch
from PIL import Image

from ..lab.comfy import runs
from ..lab.comfy.runs import encode_texts, host_guider, noise_of, sigmas_of
from ..lab.demo.contact_sheet import contact_sheet
from ..lab.models import stock
from ..lab.world.data import BACKGROUNDS, COLORS, SHAPES, caption, render, sample_scene
from ..lab.world.metrics import aggregate, grown, iou, markdown_table, mse, object_mask, psnr
from ..lab.world.reader import read_image
from ..nodes.inversion import SteerDDIMInversion
from ..nodes.null_text import SteerNullText
from ..nodes.prompt_to_prompt import SteerLocalBlend, SteerPromptEdit, SteerPromptToPromptGuider
from .runner import FOLDER
from .turns import to_bytes

SCENES, STEPS, CFG = 64, 20, 5.0
REAL, REAL_STEPS, REAL_CFG = 24, 50, 7.5
MARGIN = 5  # pixels round the object that count as the object's
SHEET = 8  # scenes of each kind on the contact sheet
EULER = comfy.samplers.sampler_object("euler")


def run() -> str:
    model, clip, vae = stock.load()
    generated, sheet = [], []
    for kind in SWAPS:
        found = {name: [] for name in METHODS}
        for index in range(SCENES):
            scene = sample_scene(random.Random(index), two=False)
            pictures = on_generated(model, clip, vae, scene, kind, index)
            for name, picture in pictures.items():
                found[name].append(judged(pictures["source"], picture, swapped(scene, kind), kind))
            if index < SHEET:
                sheet += [(name, kind, scene, picture) for name, picture in pictures.items()]
        generated += [row(kind, name, values) for name, values in found.items() if name != "source"]
    save(sheet, "prompt_to_prompt.png", f"Prompt-to-Prompt: {SHEET} of {SCENES} scenes of each kind", len(METHODS))
    real = on_real(model, clip, vae)
    return (
        f"# Prompt-to-Prompt\n\n## Generated scenes\n\n{SCENES} one-object scenes for each kind of swap, euler, "
        f"{STEPS} steps, cfg {CFG:g}; the same noise for all. Right: the reader finds the new attribute (all right: "
        "everything that the new prompt says). IoU: the object's place in the source picture and in the edit. Error: "
        "mean squared, on what the swap should leave alone (outside the object with a margin; for background swaps "
        "inside it), x 10^4. The local blend follows the noun, at threshold 0.3; for background swaps the background's "
        "two words, at 0.15."
        f"\n\n{markdown_table(generated)}\n![sheet](prompt_to_prompt.png)\n\n## Real pictures\n\n{real}"
    )


def swapped(scene, kind: str) -> dict:
    """The scene after the swap; the same place, another word."""
    rng, obj = random.Random(caption(scene) + kind), dict(scene["objs"][0])
    if kind == "background":
        bg = rng.choice([name for name in BACKGROUNDS if name not in (scene["bg"], obj["color"])])
        return {**scene, "bg": bg, "bg_rgb": BACKGROUNDS[bg]}
    if kind == "colour":
        obj["color"] = rng.choice([name for name in COLORS if name not in (scene["bg"], obj["color"])])
    else:
        obj["shape"] = rng.choice([name for name in SHAPES if name != obj["shape"]])
    return {**scene, "objs": [obj]}


SWAPS = {"colour": "color", "background": "bg", "shape": "shape"}
METHODS = {  # name: (cross_end, self_end, local blend)
    "source": None,
    "new prompt": None,
    "Prompt-to-Prompt": (0.8, 0.4, False),
    "with local blend": (0.8, 0.4, True),
}


def edit_nodes(clip, scene, kind: str, blend: bool) -> tuple:
    """Source, target and edit; the blend follows the words of the thing that changes."""
    after = swapped(scene, kind)
    source, target, edit = SteerPromptEdit.execute(clip, caption(scene), caption(after), "auto", "").args
    if blend:
        # the maps of a large area are flatter than an object's
        threshold = 0.15 if kind == "background" else 0.3
        words = [f"{s['bg']} background" if kind == "background" else s["objs"][0]["shape"] for s in (scene, after)]
        edit = SteerLocalBlend.execute(edit, *words, threshold).args[0]
    return source, target, edit


def on_generated(model, clip, vae, scene, kind: str, seed: int) -> dict:
    sigmas = sigmas_of(model, STEPS)
    noise = noise_of((1, 4, 16, 16), seed)
    empty, pictures = encode_texts(clip, [""]), {}
    for name, method in METHODS.items():
        if method is None:
            text = caption(scene if name == "source" else swapped(scene, kind))
            guider = host_guider(model, encode_texts(clip, [text]), empty, CFG)
        else:
            source, target, edit = edit_nodes(clip, scene, kind, method[2])
            guider = SteerPromptToPromptGuider.execute(model, source, target, empty, CFG, edit, *method[:2]).args[0]
        latent = runs.run(guider, EULER, sigmas, noise, seed=0)[-1:]
        pictures[name] = to_bytes(vae.decode(latent)[0])
    return pictures


def on_real(model, clip, vae) -> str:
    found, sheet = {}, []
    for index in range(REAL):
        scene, kind = sample_scene(random.Random(7000 + index), two=False), list(SWAPS)[index % len(SWAPS)]
        for name, (before, picture, after) in real_edits(model, clip, vae, scene, kind).items():
            scores = judged(before, after, swapped(scene, kind), kind)
            scores["reconstruction"] = min(psnr(picture, before), 99.0)
            found.setdefault(name, []).append(scores)
            if index < SHEET:
                if name == "DDIM":
                    sheet.append(("source", kind, scene, before))
                sheet.append((name, kind, scene, after))
    save(sheet, "prompt_to_prompt_real.png", f"Prompt-to-Prompt on {SHEET} of {REAL} real pictures", len(found) + 1)
    rows = []
    for name, values in found.items():
        mean = f"{np.mean([v['reconstruction'] for v in values]):.1f} dB"
        rows.append({**row("all three", name, values), "source PSNR": mean})
    return (
        f"{REAL} renders, the three kinds of swap in turn, inverted at cfg 1 with their captions ({REAL_STEPS} steps, "
        f"euler) and edited at cfg {REAL_CFG:g} with Prompt-to-Prompt's defaults; compared with the VAE round trip of "
        "the picture. Source PSNR: the source half of the result against it (99: exact).\n\n"
        f"{markdown_table(rows)}\n![sheet](prompt_to_prompt_real.png)"
    )


def real_edits(model, clip, vae, scene, kind: str) -> dict:
    """For each inversion: (the picture, what the source half came back as, the edit)."""
    pixels = torch.from_numpy(render(scene).copy())[None].float() / 255
    sigmas = sigmas_of(model, REAL_STEPS)
    source, target, edit = edit_nodes(clip, scene, kind, False)
    empty = encode_texts(clip, [""])
    latent, noise, inversion = SteerDDIMInversion.execute(
        host_guider(model, source, empty, 1.0), sigmas, {"samples": vae.encode(pixels)}, 0, 1e-4, check=False
    ).args
    null = SteerNullText.execute(model, source, empty, REAL_CFG, inversion, 10, 0.01, 1e-5)[0]
    negatives = {"DDIM": empty, "negative-prompt": source, "null-text": null, "Direct Inversion": empty}
    results, before = {}, to_bytes(vae.decode(latent["samples"])[0])
    for name, negative in negatives.items():
        followed = inversion if name == "Direct Inversion" else None
        guider = SteerPromptToPromptGuider.execute(
            model, source, target, negative, REAL_CFG, edit, 0.8, 0.4, inversion=followed
        ).args[0]
        both = runs.run(guider, EULER, sigmas, noise.generate_noise(latent), latent["samples"], seed=0)
        results[name] = before, *(to_bytes(vae.decode(half)[0]) for half in both.chunk(2))
    return results


def judged(before, after, wanted, kind: str) -> dict:
    """One edit: whether the new word is there, and what became of the rest."""
    read, places = read_image(after), (object_mask(before), object_mask(after))
    key = SWAPS[kind]
    if kind == "background":
        right = read["bg"] == wanted["bg"]
        kept = ~grown(~places[0], MARGIN // 2)
    else:
        right = bool(read["objs"]) and read["objs"][0][key] == wanted["objs"][0][key]
        kept = ~grown(places[0], MARGIN)
    obj, want = (read["objs"] or [{}])[0], wanted["objs"][0]
    everything = read["bg"] == wanted["bg"] and all(obj.get(k) == want[k] for k in ("color", "shape"))
    error = mse(before, after, kept) if kept.any() else float("nan")
    return {"right": right, "all": everything and len(read["objs"]) == 1, "iou": iou(*places), "error": error}


def row(kind: str, name: str, values: list[dict]) -> dict:
    mean = aggregate(values)
    error = np.nanmean([value["error"] for value in values])
    return {
        "swap": kind,
        "method": name,
        "right": f"{100 * mean['right']:.0f}%",
        "all right": f"{100 * mean['all']:.0f}%",
        "IoU of the place": f"{mean['iou']:.2f}",
        "error": f"{1e4 * error:.1f}",
        "PSNR": f"{-10 * np.log10(max(error, 1e-10)):.1f} dB",
    }


def save(items, name: str, title: str, columns: int) -> None:
    def text(method, kind, scene):
        return f"{method}: {caption(scene if method == 'source' else swapped(scene, kind))}"

    cells = [(Image.fromarray(picture), text(method, kind, scene)) for method, kind, scene, picture in items]
    contact_sheet(cells, FOLDER / name, title, columns=columns)
