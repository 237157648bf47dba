"""Pictures made wider: the right quarter of 64 scenes, through an object, drawn by the Langevin Sampler and others."""

import random

import numpy as np
import torch
from PIL import Image

from ..lab.demo.contact_sheet import contact_sheet
from ..lab.world.data import SIZE, caption, render, sample_scene
from ..lab.world.metrics import markdown_table
from ..nodes.pad_image import SteerPadImage
from . import inpainting
from .inpainting import PIXELS
from .inpainting_calls import FOLDER, LEAST, OURS, PLAIN, Bench, mean_gain
from .inpainting_peers import gain, judged
from .turns import to_bytes

SCENES, BATCH, CALLS, NEW = 64, 16, 110, 32  # columns of 128
LEAST_PART, MOST_PART = 0.25, 0.75  # of the object, that is in the new columns
SHEET = 4
EDGE, GRAY = "edge", "gray"
METHODS = [(name, EDGE) for name in (OURS, "Steer RePaint", "diffusers RePaint, eta 1", *PLAIN)]
METHODS += [(OURS, GRAY), ("Steer RePaint", GRAY)]
"""By what, and what is in the new columns when the picture is encoded."""


def run() -> str:
    bench, problems = Bench(), [widened(random.Random(index)) for index in range(SCENES)]
    results = {method: [] for method in METHODS}
    pictures = {method: [] for method in METHODS}
    for at in range(0, SCENES, BATCH):
        for method in METHODS:
            made, figures = drawn(bench, *method, problems[at : at + BATCH], at)
            results[method] += figures
            pictures[method] += list(made)
    save_sheet(problems, pictures)
    return report(results)


def widened(rng: random.Random) -> dict:
    """A scene whose right columns are new, and cut through its object, in the terms of `inpainting_peers`."""
    new = np.zeros((SIZE, SIZE), bool)
    new[:, SIZE - NEW :] = True
    while True:
        scene = sample_scene(rng, two=False)
        cover = render(scene, only_mask=True)
        if LEAST_PART <= cover[new].sum() / cover.sum() <= MOST_PART:
            return {"given": render(scene), "hole": new, "caption": caption(scene), "target": scene["objs"][0],
                    "count": 1}  # fmt: skip


def drawn(bench: Bench, name: str, fill: str, problems: list[dict], seed: int) -> tuple[np.ndarray, list[dict]]:
    """A method's pictures of the problems, and the figures of each."""
    given = torch.stack([torch.from_numpy(each["given"].copy()) for each in problems]).float() / 255
    holes = torch.stack([torch.from_numpy(each["hole"]) for each in problems]).float()
    padded = SteerPadImage.execute(given[:, :, :-NEW], 0, 0, NEW, 0)[0] if fill == EDGE else given
    latents = inpainting.without_hole(bench.vae, padded, holes, grey=fill == GRAY)
    texts = [each["caption"] for each in problems]
    before = sum(bench.rows)
    latents = bench.method(name, CALLS)(texts, latents, holes[:, None, ::PIXELS, ::PIXELS], seed)
    spent = {"rows": (sum(bench.rows) - before) / len(problems)}
    pictures = to_bytes(bench.vae.decode(latents))
    round_trips = to_bytes(bench.vae.decode(bench.vae.encode(given)))
    return pictures, [judged(*each) | spent for each in zip(problems, round_trips, pictures, strict=True)]


def report(results: dict[tuple[str, str], list[dict]]) -> str:
    rows, others, best = [], [], METHODS[0]
    for (name, fill), figures in results.items():
        inside = errors_of(figures)
        rows.append({
            "method": name,
            "new columns": fill,
            "rows": f"{np.mean([each['rows'] for each in figures]):.0f}",
            "right": f"{100 * np.mean([each['right'] and each['count'] for each in figures]):.0f}%",
            "mean PSNR": f"{np.mean(-10 * np.log10(inside)):.1f} dB",
            "median": f"{-10 * np.log10(np.median(inside)):.1f} dB",
            "of the mean error": f"{-10 * np.log10(inside.mean()):.1f} dB",
            "IoU": f"{np.mean([each['IoU'] for each in figures]):.3f}",
            "outside": f"{-10 * np.log10(np.mean([each['outside'] for each in figures])):.1f} dB",
        })  # fmt: skip
        if (name, fill) != best:
            pairs = np.stack([errors_of(results[best]), inside], 1)
            others.append(
                {
                    "against": name,
                    "new columns": fill,
                    "of the mean PSNR": mean_gain(pairs),
                    "of the mean error": gain(pairs),
                }
            )
    return (
        f"{HEAD}\n{markdown_table(rows)}\n{OURS}, the edge repeated, against each, in dB (above 0: it is better):\n\n"
        f"{markdown_table(others)}\n![sheet](outpainting.png)"
    )


def errors_of(figures: list[dict]) -> np.ndarray:
    return np.maximum([each["inside"] for each in figures], LEAST)


HEAD = f"""# Outpainting

{SCENES} scenes of one object, of which the right {NEW} of {SIZE} columns are new: they cut through the object, and
have between a quarter and three quarters of it. When the picture is encoded they repeat its edge (Pad Image), or are
gray, as after ComfyUI's node without feathering. The latents there are then set to zero. The caption is the prompt,
cfg 5, scheduler normal, about {CALLS} calls of the guider, the same noise for all. Rows: of the model, a picture; calls
of the Langevin Sampler that move the new part have one row, and the others two.

Right: the reader finds the object's colour and shape, and one object. PSNR: of the new columns against the VAE round
trip of the true scene; the mean of the scenes' PSNRs, their median, and the PSNR of the mean error, which the worst
scenes decide. IoU: what of the object is in the new columns, with the truth. Outside: PSNR of the mean error against
the picture that was given. Intervals: 95%, over the choice of scenes.
"""


def save_sheet(problems: list[dict], pictures: dict[tuple[str, str], list[np.ndarray]]) -> None:
    truths = [each["given"] for each in problems]
    given = [np.where(each["hole"][..., None], 128, each["given"]).astype(np.uint8) for each in problems]
    rows = {"truth": truths, "given": given} | {
        ", ".join(each): pictures[each] for each in (METHODS[0], METHODS[1], METHODS[-2])
    }
    cells = [(Image.fromarray(picture), name) for name, some in rows.items() for picture in some[:SHEET]]
    contact_sheet(cells, FOLDER / "outpainting.png", f"Outpainting, {CALLS} calls, the first scenes", SHEET)
