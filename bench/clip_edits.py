"""Clips of the video model changed by words, and holes in them filled: places that are hidden, and what lies beside."""

import random
from collections.abc import Callable
from typing import NamedTuple

import comfy.samplers
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..lab.comfy import runs
from ..lab.comfy.runs import counted, encode_texts, host_guider, run_seeded, sigmas_of
from ..lab.models.shapes_wan.check import WanStock
from ..lab.world.clip_reader import score_clip
from ..lab.world.clips import FRAMES, SIZE, Clip, caption, render_clip, sample_clip
from ..lab.world.data import BACKGROUNDS, COLORS, SHAPES
from ..lab.world.metrics import aggregate, grown, iou, markdown_table, mse, object_mask
from ..nodes.blended_diffusion import SteerBlendedSampler
from ..nodes.diffedit import SteerDiffEditMask
from ..nodes.direct_edit import SteerDirectEditSampler, SteerEditGuider
from ..nodes.frames import SteerFrameMask
from ..nodes.guidance import SteerCFGGuider
from ..nodes.inversion import SteerDDIMInversion
from ..nodes.langevin import SteerLangevinSampler
from ..nodes.pad_image import SteerPadImage
from ..nodes.repaint import SteerRePaintSampler
from ..nodes.sdedit import SteerSDEditSigmas
from ..nodes.trajectory_blend import SteerTrajectoryBlendSampler
from .clips import percent, sheet_of
from .runner import FOLDER

CLIPS, SEED, CFG, CALLS, GRAY = 24, 3000, 4.0, 64, 128
SHEET = 3  # clips of each problem
MARGIN = 4  # pixels round an object that its edit may change
RING = 8  # pixels round a box that are drawn anew with it: the autoencoder mixes them with its gray
HIDDEN = range(1, 5)  # frames in which a box hides the object: one latent frame
BESIDE = 24  # columns at the right that are not given
EULER = comfy.samplers.sampler_object("euler")


def run() -> str:
    return report(WanStock(), CLIPS)


class Edit(NamedTuple):
    """A clip, its latent and the conditionings of an edit."""

    seed: int
    kind: str
    latent: Tensor
    source: list
    target: list
    empty: list


def direct(model, edit: Edit, steps=16, strength=0.8, cfg=5.0) -> Tensor:
    """The nodes as the workflow `clip_direct_edit` connects them."""
    guider = SteerEditGuider.execute(model, edit.source, edit.target, 1.0, cfg, edit.empty)[0]
    sampler = SteerDirectEditSampler.execute(0.0, 0.0, 1)[0]
    return run_seeded(guider, sampler, start(model, steps, strength), edit.latent, None, edit.seed)


def diffedit(model, edit: Edit, steps=20, strength=0.9, cfg=CFG) -> Tensor:
    """As `clip_diffedit`; a new background covers too much of the clip to stand out from its mean."""
    threshold = 0.1 if edit.kind == "background" else 0.3
    latent = {"samples": edit.latent}
    mask = SteerDiffEditMask.execute(model, edit.source, edit.target, latent, 0.5, 10, threshold, edit.seed)[0]
    sigmas = start(model, steps, strength)
    guider = host_guider(model, edit.source, edit.empty, 1.0)
    _, noise, inversion = SteerDDIMInversion.execute(guider, sigmas, latent, 0, 1e-4, check=False).args
    sampler = SteerTrajectoryBlendSampler.execute(EULER, inversion)[0]
    guider = host_guider(model, edit.target, edit.empty, cfg)
    return runs.run(guider, sampler, sigmas, noise.generate_noise(latent), edit.latent, mask, seed=0)


def sdedit(model, edit: Edit, steps=24, strength=0.6, cfg=CFG) -> Tensor:
    guider = host_guider(model, edit.target, edit.empty, cfg)
    return run_seeded(guider, EULER, start(model, steps, strength), edit.latent, None, edit.seed)


EDITS: dict[str, Callable] = {"direct edit": direct, "DiffEdit": diffedit, "SDEdit": sdedit}


def start(model, steps: int, strength: float) -> Tensor:
    return SteerSDEditSigmas.execute(model, "simple", steps, strength)[0]


def edited_clip(index: int) -> tuple[Clip, Clip, str]:
    """A clip of one object, the clip of its edit, and what changes: its colour, its shape or the background."""
    rng = random.Random(SEED + index)
    clip, kind = sample_clip(rng), ("colour", "shape", "background")[index % 3]
    (obj,) = clip["objs"]
    if kind == "background":
        names = [name for name in BACKGROUNDS if name not in (clip["bg"], obj["color"])]
        bg = rng.choice(names)
        return clip, {**clip, "bg": bg, "bg_rgb": BACKGROUNDS[bg]}, kind
    if kind == "shape":
        return clip, {**clip, "objs": [{**obj, "shape": rng.choice([s for s in SHAPES if s != obj["shape"]])}]}, kind
    color = rng.choice([name for name in COLORS if name not in (clip["bg"], obj["color"])])
    return clip, {**clip, "objs": [{**obj, "color": color, "rgb": COLORS[color]}]}, kind


EDITED = f"""One word of the caption changed: the object's colour, its shape or the background, in turn. IoU: of the
object with the place where it was, the mean of the frames. Kept: PSNR of the mean error against the VAE round trip,
{MARGIN} pixels and more from the object, or inside of it where the background changed. The threshold of DiffEdit is
0.3, and 0.1 where the background changes; one clip is 4% of a column, and 12% of those of a kind.

The video model's DiffEdit is not better than SDEdit here: fewer are right, at more rows. Where it is right, its
background is as it was; a direct edit may tint it."""
HEAD = (
    f"# Clips edited and completed\n\nOn the video model, {{count}} clips of one object, {FRAMES} frames of "
    f"{SIZE}x{SIZE} (3 latent frames), scheduler simple. Settings were chosen on clips of other seeds. Rows: of the "
    "model, a clip.\n\nRight: background, colour, shape and number of objects in every frame, by the reader; the "
    "motion that the caption says; all of these.\n\n"
)


def report(stock: WanStock, count: int) -> str:
    """The tables of so many clips; the sheet goes beside them."""
    edits, sheet = [edited_clip(index) for index in range(count)], []
    made = {"given": [render_clip(clip) for clip, _, _ in edits]}
    rows = []
    for name, way in EDITS.items():
        model, spent = counted(stock.model)
        made[name] = [stock.decoded({"samples": way(model, edit)})[0] for edit in encoded(stock, edits)]
        rows.append({"method": name, "rows": round(sum(spent) / count), **scored_edits(stock, edits, made[name])})
    sheet += [sheet_of([frames[index] for frames in made.values()]) for index in range(min(SHEET, count))]
    parts = [f"## Edits\n\n{EDITED}\n\n{markdown_table(rows)}"]
    for title, problem in PROBLEMS.items():
        problems = [problem(index) for index in range(count)]
        made = {"truth": [each.truth for each in problems], "given": [each.given for each in problems]}
        rows = []
        for name, (sampler, steps) in samplers().items():
            model, spent = counted(stock.model)
            made[name] = [filled(stock, model, each, sampler, steps) for each in problems]
            rows.append(
                {"method": name, "rows": round(sum(spent) / count), **scored_holes(stock, problems, made[name])}
            )
        sheet += [sheet_of([frames[index] for frames in made.values()]) for index in range(min(SHEET, count))]
        parts.append(f"## {title}\n\n{markdown_table(rows)}")
    Image.fromarray(np.concatenate(sheet)).save(FOLDER / "clip_edits.png")
    legend = ", ".join(["given", *EDITS]), ", ".join(["truth", "given", *samplers()])
    return (
        HEAD.format(count=count) + "\n".join(parts) + "\n![sheet](clip_edits.png)\n\nFrom above, of each edited clip: "
        f"{legend[0]}; of each that has a hole: {legend[1]}."
    )


def encoded(stock: WanStock, edits: list[tuple[Clip, Clip, str]]):
    """What the nodes take of each edit."""
    empty = encode_texts(stock.clip, [""])
    for index, (clip, target, kind) in enumerate(edits):
        latent = stock.vae.encode(torch.from_numpy(render_clip(clip)).float() / 255)
        texts = (encode_texts(stock.clip, [caption(each)]) for each in (clip, target))
        yield Edit(index, kind, latent, *texts, empty)


def scored_edits(stock: WanStock, edits: list[tuple[Clip, Clip, str]], made: list[np.ndarray]) -> dict:
    scores, places, errors = [], [], []
    for (clip, target, kind), frames in zip(edits, made, strict=True):
        scores.append(score_clip(frames, caption(target)))
        before, true = stock.round_trip(render_clip(clip)), render_clip(clip, only_mask=True) > 0.5
        places.append(np.mean([iou(object_mask(frame), place) for frame, place in zip(frames, true, strict=True)]))
        kept = [~grown(~place, MARGIN) if kind == "background" else ~grown(place, MARGIN) for place in true]
        errors.append(error(frames, before, np.stack(kept)))
    whole = aggregate(scores)
    return {"every frame right": percent(whole["every"]), "motion": percent(whole["motion"]),
            "all": percent(whole["all"]), **shares_by_kind(edits, scores), "IoU": f"{np.mean(places):.2f}",
            "kept": f"{-10 * np.log10(np.mean(errors)):.1f} dB"}  # fmt: skip


def error(made: np.ndarray, true: np.ndarray, where: np.ndarray) -> float:
    """The mean squared error of frames (n, h, w, 3), where it counts."""
    return mse(made.reshape(-1, SIZE, 3), true.reshape(-1, SIZE, 3), where.reshape(-1, SIZE))


def shares_by_kind(edits: list[tuple[Clip, Clip, str]], scores: list[dict]) -> dict:
    kinds = [kind for _, _, kind in edits]
    return {
        f"all, {kind}": percent(np.mean([each["all"] for each, of in zip(scores, kinds, strict=True) if of == kind]))
        for kind in dict.fromkeys(kinds)
    }


class Hole(NamedTuple):
    """A clip that is to be completed."""

    seed: int
    clip: Clip
    truth: np.ndarray
    given: np.ndarray
    """The clip with a gray box, or with its edge repeated where it is not known."""
    hole: np.ndarray
    """What is new, bool (h, w), in the frames `first` to `last`."""
    first: int
    last: int


def hidden(index: int) -> Hole:
    """A gray box over the way of the object, in a part of the frames."""
    clip = sample_clip(random.Random(SEED + index))
    places = np.stack([grown(place, MARGIN) for place in render_clip(clip, only_mask=True)[HIDDEN] > 0.5]).any(0)
    rows, columns = (np.flatnonzero(places.any(axis)) for axis in (1, 0))
    box = np.zeros((SIZE, SIZE), bool)
    box[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
    truth = render_clip(clip)
    given = truth.copy()
    given[HIDDEN.start : HIDDEN.stop, box] = GRAY
    return Hole(index, clip, truth, given, grown(box, RING), HIDDEN.start, HIDDEN.stop - 1)


def beside(index: int) -> Hole:
    """Columns at the right that are new in every frame."""
    columns = np.zeros((SIZE, SIZE), bool)
    columns[:, SIZE - BESIDE :] = True
    clip = sample_clip(random.Random(SEED + index))
    truth = render_clip(clip)
    part = torch.from_numpy(truth[:, :, : SIZE - BESIDE].copy()).float() / 255
    given = (255 * SteerPadImage.execute(part, 0, 0, BESIDE, 0)[0]).round().byte().numpy()
    return Hole(index, clip, truth, given, columns, 0, FRAMES - 1)


PROBLEMS = {
    "A box hides the object in 4 of 9 frames": hidden,
    f"The right {BESIDE} of {SIZE} columns are new": beside,
}


def samplers() -> dict[str, tuple]:
    """By name the SAMPLER and its steps, all of about CALLS calls."""
    return {
        "host masked, euler": (EULER, CALLS),
        "Blended, euler": (SteerBlendedSampler.execute(EULER, 0)[0], CALLS),
        "RePaint": (SteerRePaintSampler.execute(4, 5, 1.0)[0], 20),
        "Langevin": (SteerLangevinSampler.execute(5, 0.8)[0], 24),
    }


def filled(stock: WanStock, model, problem: Hole, sampler, steps: int) -> np.ndarray:
    """As the workflows `clip_inpainting` and `clip_outpainting` connect the nodes, but for Stitch at the end."""
    latent = stock.vae.encode(torch.from_numpy(problem.given).float() / 255)
    hole = torch.from_numpy(problem.hole)[None].float()
    mask = SteerFrameMask.execute(stock.vae, {"samples": latent}, problem.first, problem.last, hole)[0]
    conds = encode_texts(stock.clip, [caption(problem.clip)]), encode_texts(stock.clip, [""])
    guider = SteerCFGGuider.execute(model, *conds, CFG, 0.0, 1.0, 1.0)[0]
    samples = run_seeded(guider, sampler, sigmas_of(model, steps, "simple"), latent, mask, problem.seed)
    return stock.decoded({"samples": samples})[0]


def scored_holes(stock: WanStock, problems: list[Hole], made: list[np.ndarray]) -> dict:
    scores, inside, outside = [], [], []
    for problem, frames in zip(problems, made, strict=True):
        scores.append(score_clip(frames, caption(problem.clip)))
        new = np.zeros((FRAMES, SIZE, SIZE), bool)
        new[problem.first : problem.last + 1] = problem.hole
        inside.append(error(frames, stock.round_trip(problem.truth), new))
        outside.append(error(frames, problem.truth, ~new))
    whole = aggregate(scores)
    return {"every frame right": percent(whole["every"]), "motion": percent(whole["motion"]),
            "all": percent(whole["all"]), "mean PSNR inside": f"{np.mean(-10 * np.log10(inside)):.1f} dB",
            "of the mean error": f"{-10 * np.log10(np.mean(inside)):.1f} dB",
            "outside": f"{-10 * np.log10(np.mean(outside)):.1f} dB"}  # fmt: skip
