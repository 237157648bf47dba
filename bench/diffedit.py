"""DiffEdit on 64 pictures with the truth known: the mask and the whole edit, against diffusers' pipeline."""

import random

import comfy.samplers
import numpy as np
import torch
from PIL import Image

from ..lab.comfy import runs
from ..lab.comfy.runs import counted, encode_texts, host_guider, with_pytorch_attention
from ..lab.demo.contact_sheet import contact_sheet
from ..lab.models import stock
from ..lab.world.data import BACKGROUNDS, COLORS, SHAPES, caption, render, sample_scene
from ..lab.world.metrics import attributes, grown, iou, markdown_table, mse
from ..lab.world.reader import read_image
from ..nodes.diffedit import SteerDiffEditMask
from ..nodes.inversion import SteerDDIMInversion
from ..nodes.sdedit import SteerSDEditSigmas
from ..nodes.trajectory_blend import SteerTrajectoryBlendSampler
from ..samplers.diffedit import mask_from
from .diffusers_diffedit import load_pipeline, published
from .runner import FOLDER
from .turns import in_turns, to_bytes

PICTURES, STEPS, STRENGTH, CFG = 64, 40, 0.8, 7.5  # diffusers' defaults: 50 steps, of which the lower 0.8 are taken
PIXELS = 8  # of a latent pixel
APART = 24  # pixels from the object from which on the decoder sees little of it
SHEET = 12
THRESHOLDS = 0.1, 0.2, 0.3, 0.5  # for new backgrounds
EULER = comfy.samplers.sampler_object("euler")
KINDS = {"colour": "color", "shape": "shape"}


def run() -> str:
    model, clip, vae = stock.load()
    (model, rows), pipeline = counted(with_pytorch_attention(model)), load_pipeline()
    pipeline.unet.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    problems = [problem(clip, vae, index) for index in range(PICTURES)]
    truths = [changed_latents(vae, given) for given in problems]
    methods = {
        "Steer": lambda given: steer(model, vae, given),
        "diffusers": lambda given: published(pipeline, given, CFG, CFG),
        "diffusers, inverted at cfg 1": lambda given: published(pipeline, given, CFG, 1.0),
        "Steer, mask grown by a latent pixel": lambda given: steer(model, vae, given, grow=PIXELS),
    }
    results = {name: [] for name in methods}
    for name, given, result, spent in in_turns(methods, problems, rows):
        results[name].append(result | spent | judged(given, result))
    save(problems, results)
    return report(problems, results | {"the true change of the latents": truths}, backgrounds(model, clip, vae))


def problem(clip, vae, index: int) -> dict:
    """A scene, one word of one of its objects changed; the truth is where the object is before or after."""
    rng = random.Random(9000 + index)
    scene, kind = sample_scene(rng), list(KINDS)[index % len(KINDS)]
    place = rng.randrange(len(scene["objs"]))
    obj = dict(scene["objs"][place])
    if kind == "colour":
        taken = {scene["bg"], *(each["color"] for each in scene["objs"])}
        obj["color"] = rng.choice([name for name in COLORS if name not in taken])
        obj["rgb"] = COLORS[obj["color"]]
    else:
        obj["shape"] = rng.choice([name for name in SHAPES if name != obj["shape"]])
    after = {**scene, "objs": [obj if i == place else each for i, each in enumerate(scene["objs"])]}
    before, edited = (render({**each, "objs": [each["objs"][place]]}, only_mask=True) for each in (scene, after))
    latent = encoded(vae, scene)
    texts = caption(scene), caption(after)
    return {"scenes": (scene, after), "kind": kind, "texts": texts, "asked": obj, "index": index, "latent": latent,
            "conds": [encode_texts(clip, [text]) for text in (*texts, "")], "object": before > 0.5,
            "truth": np.maximum(before, edited) > 0.5, "round_trip": to_bytes(vae.decode(latent)[0])}  # fmt: skip


def encoded(vae, scene):
    return vae.encode(torch.from_numpy(render(scene).copy())[None].float() / 255)


def changed_latents(vae, given: dict) -> dict:
    """The mask cut in the same way from how the latents really change: as good as any contrast could be."""
    mask = mask_from((encoded(vae, given["scenes"][1]) - given["latent"]).abs().mean(1), 0.5)[0][0].numpy() > 0
    return masks_judged(given, mask.repeat(PIXELS, 0).repeat(PIXELS, 1))


def backgrounds(model, clip, vae) -> list[dict]:
    """IoU with all but the object, where the prompts differ in the background, for each threshold."""
    rows = []
    for threshold in THRESHOLDS:
        values = []
        for index in range(PICTURES // 2):
            scene = sample_scene(random.Random(31000 + index), two=False)
            taken = scene["bg"], scene["objs"][0]["color"]
            after = {**scene, "bg": next(name for name in BACKGROUNDS if name not in taken)}
            mask = SteerDiffEditMask.execute(
                model, *(encode_texts(clip, [caption(each)]) for each in (scene, after)),
                {"samples": encoded(vae, scene)}, 0.5, 10, threshold, index,
            )[0]  # fmt: skip
            values.append(iou(mask[0].numpy() > 0, render(scene, only_mask=True) <= 0.5))
        rows.append({"threshold": f"{threshold:g}", "IoU": f"{np.mean(values):.3f}"})
    return rows


def steer(model, vae, given: dict, grow: int = 0) -> dict:
    """The nodes as the example workflow connects them."""
    source, target, empty = given["conds"]
    mask, heatmap = SteerDiffEditMask.execute(
        model, source, target, {"samples": given["latent"]}, 0.5, 10, 0.5, given["index"]
    ).args
    used = torch.from_numpy(grown(mask[0].numpy() > 0, grow))[None].float() if grow else mask
    sigmas = SteerSDEditSigmas.execute(model, "normal", STEPS, STRENGTH)[0]
    latent, noise, inversion = SteerDDIMInversion.execute(
        host_guider(model, source, empty, 1.0), sigmas, {"samples": given["latent"]}, 0, 1e-4, check=False
    ).args
    sampler = SteerTrajectoryBlendSampler.execute(EULER, inversion)[0]
    guider, start = host_guider(model, target, empty, CFG), noise.generate_noise(latent)
    result = runs.run(guider, sampler, sigmas, start, latent["samples"], used, seed=0)
    picture, change = to_bytes(vae.decode(result)[0]), result - latent["samples"]
    return {"picture": picture, "change": change, "mask": used[0].numpy() > 0, "heatmap": to_bytes(heatmap[0])}


def judged(given: dict, result: dict) -> dict:
    """The mask against the truth, the object against what was asked, and what became of the rest."""
    asked, found = given["asked"], read_image(result["picture"])["objs"]
    nearest = min(found, key=lambda o: np.hypot(o["cx"] - asked["cx"], o["cy"] - asked["cy"]), default={})
    key, rest = KINDS[given["kind"]], ~grown(given["truth"], PIXELS)
    apart, kept = ~grown(given["truth"], APART), ~result["mask"][::PIXELS, ::PIXELS]
    change = result["change"][0][:, torch.from_numpy(kept)]
    return masks_judged(given, result["mask"]) | {
        "right": nearest.get(key) == asked[key],
        "all": attributes(result["picture"], given["texts"][1])["all"],
        "error": mse(result["picture"], given["round_trip"], rest),
        "apart": mse(result["picture"], given["round_trip"], apart) if apart.any() else np.nan,
        "latent error": float(change.abs().max() / given["latent"].std()) if kept.any() else 0.0,
    }


def masks_judged(given: dict, mask) -> dict:
    return {"iou": iou(mask, given["truth"]), "iou of the object": iou(mask, given["object"]), "area": mask.mean()}


def report(problems, results, new_backgrounds) -> str:
    ours, theirs = results["Steer"], results["diffusers"]
    better = np.mean([a["iou"] > b["iou"] for a, b in zip(ours, theirs, strict=True)])
    slowest = [np.median([a["seconds"] / b["seconds"] for a, b in zip(ours, results[name], strict=True)])
               for name in ("diffusers", "diffusers, inverted at cfg 1")]  # fmt: skip
    cut = "Steer", "diffusers", "the true change of the latents"
    masks = [mask_row(kind, name, problems, results[name]) for kind in ("both", *KINDS) for name in cut]
    edits = [edit_row(name, values) for name, values in results.items() if name != cut[-1]]
    return (
        f"# DiffEdit\n\n{PICTURES} shapes pictures of one or two objects, one word of one object changed (colour and "
        "shape in turn). diffusers is its own StableDiffusionDiffEditPipeline on the same weights, prompts and number "
        "of noises; both are given the encoded picture and the encoded prompts, and both use PyTorch's attention.\n\n"
        "## The mask\n\nDefault settings. IoU with the object's true pixels, before and after the edit together "
        "(all that an edit has to reach: for colours that is the object), and with the object as it was; share of the "
        "picture. The true change: of what the VAE makes of the picture before and after, cut by the same rule. A VAE "
        "spreads what it encodes over its neighbours, and a latent pixel is 8 pixels; that limits such masks.\n\n"
        f"{markdown_table(masks)}\nOurs has the higher IoU in {100 * better:.0f}% of the pictures.\n\n"
        "A new background covers too much of the picture to stand out from its mean: IoU with all but the object, "
        f"{PICTURES // 2} pictures of one object, by threshold.\n\n{markdown_table(new_backgrounds)}\n"
        f"## The edit\n\n{STEPS} steps below strength {STRENGTH:g}, cfg {CFG:g}, euler (diffusers: the lower 40 of 50 "
        "steps, DDIM). Right: the reader finds the asked attribute in the object at that place (all right: "
        "everything that the new prompt says). PSNR against the VAE round trip of the picture, outside the object with "
        f"{PIXELS} and {APART} pixels of margin, of the mean error. Latent error: the largest of any picture outside "
        "its mask, over the latents' std. Model rows: UNet evaluations of one picture, mask, inversion and sampling "
        f"together.\n\n{markdown_table(edits)}\n"
        f"Seconds in turns, from latent to picture: ours are {slowest[0]:.2f} of diffusers', and {slowest[1]:.2f} of "
        "diffusers' inverting at cfg 1 (medians of the pictures' ratios). What ours saves: the negative cancels in the "
        "contrast (20 model rows for 40), and the inversion is at cfg 1.\n\n![sheet](diffedit.png)"
    )


def mask_row(kind: str, name: str, problems, values) -> dict:
    chosen = [value for given, value in zip(problems, values, strict=True) if kind in ("both", given["kind"])]

    def mean(key):
        return float(np.mean([value[key] for value in chosen]))

    return {"edits": kind, "mask": name, "IoU": f"{mean('iou'):.3f}",
            "median": f"{np.median([value['iou'] for value in chosen]):.3f}",
            "with the object as it was": f"{mean('iou of the object'):.3f}",
            "area": f"{100 * mean('area'):.0f}%"}  # fmt: skip


def edit_row(name: str, values) -> dict:
    def mean(key):
        return float(np.nanmean([value[key] for value in values]))

    return {
        "method": name,
        "right": f"{100 * mean('right'):.0f}%",
        "all right": f"{100 * mean('all'):.0f}%",
        "PSNR outside": f"{-10 * np.log10(mean('error')):.1f} dB",
        "PSNR apart": f"{-10 * np.log10(mean('apart')):.1f} dB",
        "latent error": f"{max(value['latent error'] for value in values):.1g}",
        "model rows": f"{mean('rows'):.0f}",
        "seconds": f"{np.median([value['seconds'] for value in values]):.2f}",
    }


def save(problems, results) -> None:
    """Source, heatmap, our mask, our edit, diffusers' mask, diffusers' edit."""
    cells = []
    for index in range(SHEET):
        given, ours, theirs = problems[index], results["Steer"][index], results["diffusers"][index]
        cells += [
            (given["round_trip"], f"source: {given['texts'][0]}"),
            (ours["heatmap"], "heatmap"),
            (overlay(given["round_trip"], ours["mask"]), f"our mask, IoU {ours['iou']:.2f}"),
            (ours["picture"], f"ours: {given['texts'][1]}"),
            (overlay(given["round_trip"], theirs["mask"]), f"diffusers' mask, IoU {theirs['iou']:.2f}"),
            (theirs["picture"], f"diffusers: {given['texts'][1]}"),
        ]
    contact_sheet([(Image.fromarray(picture), text) for picture, text in cells], FOLDER / "diffedit.png",
                  f"DiffEdit: the first {SHEET} of {PICTURES} pictures", columns=6)  # fmt: skip


def overlay(picture: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The picture darkened outside the mask."""
    return np.where(mask[..., None], picture, picture // 4)
