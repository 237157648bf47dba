"""Editing real pictures by words: direct edit, with Prompt-to-Prompt and in a mask, against edits that invert."""

import random
from itertools import product

import comfy.samplers
import numpy as np
import torch

from ..lab.comfy import runs
from ..lab.comfy.runs import counted, encode_texts, host_guider, sigmas_of
from ..lab.models import stock
from ..lab.world.data import render, sample_scene
from ..lab.world.metrics import grown, markdown_table
from ..nodes.diffedit import SteerDiffEditMask
from ..nodes.direct_edit import SteerDirectEditSampler, SteerEditGuider
from ..nodes.inversion import SteerDDIMInversion
from ..nodes.prompt_to_prompt import SteerPromptToPromptGuider
from ..nodes.sdedit import SteerSDEditSigmas
from ..nodes.trajectory_blend import SteerTrajectoryBlendSampler
from .prompt_to_prompt import SWAPS, edit_nodes, judged, save, swapped
from .turns import in_turns, to_bytes

PICTURES, SEED = 64, 50000  # settings were chosen on the pictures of seeds 7000 and 9000
SHEET = 6
CFG, ENDS = 5.0, (0.8, 0.4)
STRENGTHS, TARGET_CFGS = (0.4, 0.5, 0.66, 0.8, 1.0), (3.0, 5.0, 7.5)
CURVE, CURVE_SEED = 12, 60000  # pictures for the curve
MARGIN = 8  # pixels that the painted mask goes beyond the object
EULER = comfy.samplers.sampler_object("euler")


def run() -> str:
    model, clip, vae = stock.load()
    model, rows = counted(model)
    problems = [problem(clip, vae, index) for index in range(PICTURES)]
    methods = {name: lambda given, way=way: way(model, vae, given) for name, way in METHODS.items()}
    results = {name: [] for name in methods}
    for name, given, latent, spent in in_turns(methods, problems, rows):
        results[name].append(scored(vae, given, latent) | spent)
    return report(problems, results, curve(model, clip, vae, rows))


def problem(clip, vae, index: int, seed: int = SEED) -> dict:
    """A render of one object, the word to swap, and what the nodes take of it."""
    scene, kind = sample_scene(random.Random(seed + index), two=False), list(SWAPS)[index % len(SWAPS)]
    latent = vae.encode(torch.from_numpy(render(scene).copy())[None].float() / 255)
    place = render(scene, only_mask=True) > 0.5
    painted = ~place if kind == "background" else grown(place, MARGIN)
    return {"scene": scene, "kind": kind, "index": index, "latent": latent, "empty": encode_texts(clip, [""]),
            "edit": edit_nodes(clip, scene, kind, False), "painted": torch.from_numpy(painted)[None].float(),
            "before": to_bytes(vae.decode(latent)[0])}  # fmt: skip


def direct(model, vae, given, steps=16, strength=0.66, cfg=CFG, guider=None, mask=None):
    """The nodes as the example workflow connects them."""
    source, target, _ = given["edit"]
    guider = guider or SteerEditGuider.execute(model, source, target, 1.0, cfg, given["empty"])[0]
    sigmas, sampler = start(model, steps, strength), SteerDirectEditSampler.execute(0.0, 0.0, 1)[0]
    return runs.run_seeded(guider, sampler, sigmas, given["latent"], mask, given["index"])[-1:]


def under_prompt_to_prompt(model, vae, given, mask=None):
    source, target, edit = given["edit"]
    guider = SteerPromptToPromptGuider.execute(model, source, target, given["empty"], CFG, edit, *ENDS)[0]
    return direct(model, vae, given, 10, 0.8, guider=guider, mask=mask)


def diffedit(model, vae, given):
    source, target, _ = given["edit"]
    threshold = 0.1 if given["kind"] == "background" else 0.5
    mask = SteerDiffEditMask.execute(
        model, source, target, {"samples": given["latent"]}, 0.5, 10, threshold, given["index"]
    )[0]
    sigmas = start(model, 20, 0.8)
    latent, noise, inversion = inverted(model, given, sigmas, 0)
    sampler = SteerTrajectoryBlendSampler.execute(EULER, inversion)[0]
    guider = host_guider(model, target, given["empty"], 7.5)
    return runs.run(guider, sampler, sigmas, noise, latent, mask, seed=0)


def direct_inversion(model, vae, given):
    (source, target, edit), sigmas = given["edit"], sigmas_of(model, 25)
    latent, noise, inversion = inverted(model, given, sigmas, 0)
    guider = SteerPromptToPromptGuider.execute(
        model, source, target, given["empty"], CFG, edit, *ENDS, inversion=inversion
    )[0]
    return runs.run(guider, EULER, sigmas, noise, latent, seed=0)[-1:]


def inversion_and_prompt(model, vae, given):
    sigmas = sigmas_of(model, 25)
    latent, noise, _ = inverted(model, given, sigmas, 5)
    return runs.run(host_guider(model, given["edit"][1], given["empty"], CFG), EULER, sigmas, noise, latent, seed=0)


def sdedit(model, vae, given, steps=30, strength=0.6, cfg=7.5):
    guider, sigmas = host_guider(model, given["edit"][1], given["empty"], cfg), start(model, steps, strength)
    return runs.run_seeded(guider, EULER, sigmas, given["latent"], seed=given["index"])


def start(model, steps: int, strength: float):
    return SteerSDEditSigmas.execute(model, "normal", steps, strength)[0]


def inverted(model, given, sigmas, refine: int):
    """The latent, the noise that it comes from, and the inversion."""
    guider = host_guider(model, given["edit"][0], given["empty"], 1.0)
    latent, noise, inversion = SteerDDIMInversion.execute(
        guider, sigmas, {"samples": given["latent"]}, refine, 1e-4, check=False
    ).args
    return latent["samples"], noise.generate_noise(latent), inversion


METHODS = {
    "direct edit, strength 0.66": direct,
    "direct edit, strength 0.8": lambda *given: direct(*given, 20, 0.8),
    "direct edit with Prompt-to-Prompt": under_prompt_to_prompt,
    "the same in a painted mask": lambda model, vae, given: under_prompt_to_prompt(model, vae, given, given["painted"]),
    "DiffEdit": diffedit,
    "Direct Inversion with Prompt-to-Prompt": direct_inversion,
    "exact inversion, then the new prompt": inversion_and_prompt,
    "SDEdit, strength 0.6": sdedit,
}


def scored(vae, given: dict, latent) -> dict:
    after = to_bytes(vae.decode(latent)[0])
    wanted = swapped(given["scene"], given["kind"])
    return judged(given["before"], after, wanted, given["kind"]) | {"picture": after}


def curve(model, clip, vae, rows: list[int]) -> list[dict]:
    """A row for each strength and cfg of direct edit and of SDEdit: what comes of an edit, and what stays."""
    problems, table = [problem(clip, vae, index, CURVE_SEED) for index in range(CURVE)], []
    ways = {"direct edit": (direct, 10), "SDEdit": (sdedit, 15)}  # of 3 model rows a step, and of 2
    for (name, (way, steps)), strength, cfg in product(ways.items(), STRENGTHS, TARGET_CFGS):
        calls = len(rows)
        values = [scored(vae, given, way(model, vae, given, steps, strength, cfg)) for given in problems]
        spent = {"rows": sum(rows[calls:]) / CURVE, "seconds": 0.0}
        line = row("", [value | spent for value in values])
        shown = {name: line[name] for name in ("right", "all right", "IoU of the place", "PSNR", "model rows")}
        table.append({"method": name, "strength": f"{strength:g}", "cfg": f"{cfg:g}"} | shown)
    return table


def report(problems: list[dict], results: dict, curved: list[dict]) -> str:
    count = len(problems)
    save(cells(problems, results), "direct_edit.png", f"Edits by words: the first {SHEET} of {count}", len(results) + 1)
    table = markdown_table([row(name, values) for name, values in results.items()])
    return (
        f"# Direct edit\n\n{count} renders of one object, one word swapped: its colour, the background, its shape, in "
        "turn. The protocol and the measures are those of [the real pictures of Prompt-to-Prompt]"
        "(prompt_to_prompt.md); settings were chosen on other pictures. Right: the reader finds the new word (in "
        "brackets by kind of swap); all right: everything that the new prompt says. PSNR: of the mean error on what "
        "should stay, against the VAE round trip of the picture. After ±, one standard error. Model rows: UNet "
        "evaluations of one picture.\n\nDirect edit: source_cfg 1, target_cfg 5, 16 steps at 0.66 and 20 at 0.8. "
        f"With Prompt-to-Prompt: cfg {CFG:g}, cross_end {ENDS[0]:g}, self_end {ENDS[1]:g}, 10 steps, strength 0.8. "
        f"The painted mask: the object with a margin of {MARGIN} pixels; for backgrounds all but the object. DiffEdit: "
        "20 steps, strength 0.8, cfg 7.5, threshold 0.5 (backgrounds 0.1). Direct Inversion with Prompt-to-Prompt: 25 "
        "steps, the same cfg and ends. Exact inversion: refine 5, 25 steps, sampled with the new prompt at cfg 5. "
        f"SDEdit: 30 steps, cfg 7.5.\n\n{table}\n![sheet](direct_edit.png)\n\n"
        + (f"## How much to change\n\n{CURVE} other pictures. Direct edit: 10 steps, cfg is target_cfg. SDEdit: 15 "
           "steps.\n\n"
           f"{markdown_table(curved)}" if curved else "")
    )  # fmt: skip


def row(name: str, values: list[dict]) -> dict:
    rights = {kind: np.mean([v["right"] for v in values[i :: len(SWAPS)]]) for i, kind in enumerate(SWAPS)}
    errors, places = (np.array([value[key] for value in values]) for key in ("error", "iou"))
    error, apart = np.nanmean(errors), deviation(errors)
    return {
        "method": name,
        "right": f"{share(values, 'right')} ({', '.join(f'{100 * right:.0f}' for right in rights.values())})",
        "all right": share(values, "all"),
        "IoU of the place": f"{places.mean():.2f} ± {deviation(places):.2f}",
        "PSNR": f"{-10 * np.log10(error):.1f} ± {10 / np.log(10) * apart / error:.1f} dB",
        "model rows": f"{np.mean([value['rows'] for value in values]):.0f}",
        "seconds": f"{np.median([value['seconds'] for value in values]):.2f}",
    }


def share(values: list[dict], name: str) -> str:
    marks = [float(value[name]) for value in values]
    return f"{100 * np.mean(marks):.0f} ± {100 * deviation(marks):.0f}%"


def deviation(values) -> float:
    """One standard error of the mean."""
    values = np.asarray(values, float)
    values = values[np.isfinite(values)]
    return float(values.std(ddof=1) / len(values) ** 0.5)


def cells(problems: list[dict], results: dict) -> list[tuple]:
    """The source and each method's picture, for the first pictures."""
    found = []
    for index, given in enumerate(problems[:SHEET]):
        pictures = {"source": given["before"]} | {name: values[index]["picture"] for name, values in results.items()}
        found += [(name, given["kind"], given["scene"], picture) for name, picture in pictures.items()]
    return found
