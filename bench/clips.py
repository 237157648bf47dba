"""New frames of clips on the video model: after five given ones, between a first and four last, and in a loop."""

import random
from collections.abc import Callable
from dataclasses import dataclass

import comfy.samplers
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..lab.comfy.runs import counted, encode_texts, run_seeded, sigmas_of
from ..lab.models.shapes_wan.check import WanStock
from ..lab.world.clip_reader import score_clip
from ..lab.world.clips import FRAMES, MOTIONS, Clip, caption, render_clip, sample_clip, scene_at
from ..lab.world.clips import SIZE as CLIP_SIZE
from ..lab.world.data import render
from ..lab.world.metrics import aggregate, markdown_table
from ..lab.world.reader import read_image
from ..nodes.blended_diffusion import SteerBlendedSampler
from ..nodes.frames import SteerFrameMask, SteerPadFrames
from ..nodes.guidance import SteerCFGGuider
from ..nodes.langevin import SteerLangevinSampler
from ..nodes.repaint import SteerRePaintSampler
from .runner import FOLDER

CLIPS, BATCH, CFG = 32, 16, 4.0
CALLS = 64
SHEET, GAP = 3, 4  # clips of each problem, and pixels between them
SHOWN, SECONDS = 6, 0.16  # clips side by side in the animated picture, and how long each frame of it is there
PROBLEMS = {"continuation": (5, 0), "bridge": (1, 4), "loop": (1, 4)}
"""How many frames are given in front, and how many at the end."""
BACK = {name: next(back for back, (u, v) in MOTIONS.items() if (u, v) == (-x, -y)) for name, (x, y) in MOTIONS.items()}
"""Of each motion the opposite one."""


@dataclass(frozen=True)
class Results:
    """What a method made of the clips of a problem."""

    frames: np.ndarray
    """uint8 (clips, FRAMES, h, w, 3), the given ones as they were."""
    calls: int
    rows: int
    """Model calls, and of how many latents, for a batch."""


def methods() -> dict[str, tuple[Callable, int]]:
    """By name the SAMPLER and its steps, all of about CALLS calls."""
    euler = comfy.samplers.sampler_object("euler")
    return {
        "host masked, euler": (euler, CALLS),
        "host masked, euler_ancestral": (comfy.samplers.sampler_object("euler_ancestral"), CALLS),
        "Blended, euler": (SteerBlendedSampler.execute(euler, 0)[0], CALLS),
        "RePaint": (SteerRePaintSampler.execute(4, 5, 1.0)[0], 20),
        "Langevin": (SteerLangevinSampler.execute(5, 0.8)[0], 24),
    }


def run() -> str:
    return report(WanStock(), CLIPS)


def report(stock: WanStock, count: int) -> str:
    """The tables of so many clips; the sheet goes beside them."""
    forth = [sample_clip(random.Random(index)) for index in range(count)]
    parts, sheet = [], []
    for problem, (front, end) in PROBLEMS.items():
        clips = [back_of(clip) for clip in forth] if problem == "loop" else forth
        truth = np.stack([loop_of(clip) if problem == "loop" else render_clip(clip) for clip in forth])
        made = {"truth": Results(truth, 0, 0)}
        for name, (sampler, steps) in methods().items():
            made[name] = sampled(stock, clips, truth, (front, end), sampler, steps)
        scores = [{"method": name, **scored(clips, each, front, end)} for name, each in made.items()]
        if problem == "loop":  # whose given frames go another way than the caption
            scores = [{name: score[name] for name in ("method", *NEW)} for score in scores]
        tracks = [{"method": name, **tracked(clips, truth, each.frames)} for name, each in made.items()]
        parts.append(f"## {TITLES[problem]}\n\n{markdown_table(scores)}\n{TRACK}\n\n{markdown_table(tracks)}")
        if problem == "continuation":
            save_animated(made["Langevin"].frames[:SHOWN], front)
        sheet += [sheet_of([each.frames[index] for each in made.values()]) for index in range(min(SHEET, count))]
    Image.fromarray(np.concatenate(sheet)).save(FOLDER / "clips.png")
    names = ", ".join(["truth", *methods()])
    return HEAD.format(count=count) + "\n".join(parts) + f"\n![sheet](clips.png)\n\nFrom above, of each clip: {names}."


HEAD = (
    f"# Clips\n\nOn the video model, {{count}} clips of one object, {FRAMES} frames of 64x64 (3 latent frames), the "
    f"caption as the prompt, cfg {CFG:g}, scheduler simple, the same noise for all. `Pad Frames` and `Frame Mask` say "
    "what is new; the given frames are put back afterwards. Model calls, and rows of a batch of up to "
    f"{BATCH} clips: a guided call has two rows for each clip, a move of Langevin one.\n\nRight: background, colour, "
    "shape and number of objects in a frame, by the reader; in every frame; the motion that the caption says; all of "
    "these.\n\n"
)
TITLES = {
    "continuation": "Continuation: 5 frames given, 4 after them new",
    "bridge": "Bridge: the first and the last 4 frames given, 4 between them new",
    "loop": "Loop: the last frame given, the first 4 of the same clip behind 4 new ones that lead back to them",
}
NEW = "model calls", "rows", "new frames right"
TRACK = (
    "How far the object's centre is from where it is in the true clip, in pixels, by frame: the mean over the clips in "
    "which the reader finds it in that frame. The first frame is 0."
)


def back_of(clip: Clip) -> Clip:
    """The clip of the objects going back from where they are in the last frame to where they began."""
    last = scene_at(clip, FRAMES - 1)["objs"]
    return {**clip, "objs": [{**obj, "motion": BACK[obj["motion"]]} for obj in last]}


def loop_of(clip: Clip) -> np.ndarray:
    """A clip's last frame, four in which its objects go straight back, and its first four."""
    front, end = PROBLEMS["loop"]
    steps = FRAMES - front - end + 1
    back = back_of(clip)
    way = [render(scene_at(back, (FRAMES - 1) * step / steps), size=CLIP_SIZE) for step in range(steps)]
    return np.concatenate([np.stack(way), render_clip(clip)[:end]])


def sampled(stock: WanStock, clips: list[Clip], truth: np.ndarray, given: tuple[int, int], sampler, steps: int):
    """The results of a sampler."""
    model, rows = counted(stock.model)
    sigmas, parts, calls = sigmas_of(model, steps, "simple"), [], 0
    for start in range(0, len(clips), BATCH):
        batch = slice(start, start + BATCH)
        latents, mask = zip(*(padded(stock.vae, clip, *given) for clip in truth[batch]), strict=True)
        texts = [caption(clip) for clip in clips[batch]]
        conds = encode_texts(stock.clip, texts), encode_texts(stock.clip, [""])
        guider = SteerCFGGuider.execute(model, *conds, CFG, 0.0, 1.0, 1.0)[0]
        parts.append(run_seeded(guider, sampler, sigmas, torch.cat(latents), mask[0], start))
        calls = calls or len(rows)
    frames, kept = stock.decoded({"samples": torch.cat(parts)}), kept_frames(*given)
    frames[:, kept] = truth[:, kept]
    return Results(frames, calls, sum(rows[:calls]))


def kept_frames(front: int, end: int) -> list[int]:
    return [*range(front), *range(FRAMES - end, FRAMES)]


def padded(vae, clip: np.ndarray, front: int, end: int) -> tuple[Tensor, Tensor]:
    """The latent of a clip whose frames between `front` and `end` are not given, and its mask."""
    frames = torch.from_numpy(clip.copy()).float() / 255
    following = frames[FRAMES - end :] if end else None
    frames, mask = SteerPadFrames.execute(frames[:front], 0, FRAMES - front - end, following).args
    latent = vae.encode(frames)
    return latent, SteerFrameMask.execute(vae, {"samples": latent}, 0, -1, mask)[0]


def scored(clips: list[Clip], made: Results, front: int, end: int) -> dict:
    """Shares of what is right, of the new frames alone and of the clips."""
    kept = kept_frames(front, end)
    new = [frame for frame in range(FRAMES) if frame not in kept]
    whole = aggregate([score_clip(frames, caption(clip)) for clip, frames in zip(clips, made.frames, strict=True)])
    alone = aggregate([score_clip(frames[new], caption(clip)) for clip, frames in zip(clips, made.frames, strict=True)])
    return {
        "model calls": made.calls,
        "rows": made.rows,
        "new frames right": percent(alone["frames"]),
        "every frame right": percent(whole["every"]),
        "motion": percent(whole["motion"]),
        "all": percent(whole["all"]),
    }


def percent(share: float) -> str:
    return f"{100 * share:.0f}%"


def tracked(clips: list[Clip], truth: np.ndarray, made: np.ndarray) -> dict:
    """By frame the mean distance of the objects' centres from the true clips', both as the reader sees them."""
    errors: list[list[float]] = [[] for _ in range(FRAMES)]
    for clip, true, frames in zip(clips, truth, made, strict=True):
        for number, pair in enumerate(zip(true, frames, strict=True)):
            places = [centre(frame, clip["objs"][0]["color"]) for frame in pair]
            if all(place is not None for place in places):
                errors[number].append(float(np.hypot(*np.subtract(*places))))
    return {f"{number}": f"{np.mean(each):.1f}" if each else "" for number, each in enumerate(errors)}


def centre(frame: np.ndarray, color: str) -> tuple[float, float] | None:
    """Of the one object of this colour; None where there is none, or several."""
    places = [(obj["cx"], obj["cy"]) for obj in read_image(frame)["objs"] if obj["color"] == color]
    return places[0] if len(places) == 1 else None


def sheet_of(clips: list[np.ndarray]) -> np.ndarray:
    """The frames of several versions of a clip, a row each, and a gap below."""
    rows = np.concatenate([np.concatenate(list(frames), 1) for frames in clips])
    return np.concatenate([rows, np.full((GAP, *rows.shape[1:]), 255, np.uint8)])


def save_animated(clips: np.ndarray, front: int) -> None:
    """Clips side by side as an animated picture, a line below them where frames are new."""
    pictures = []
    for index in range(FRAMES):
        row = np.concatenate(list(clips[:, index]), 1)
        line = np.full((GAP, *row.shape[1:]), 255 if index < front else (230, 60, 160), np.uint8)
        picture = Image.fromarray(np.concatenate([row, line]))
        pictures.append(picture.resize((2 * picture.width, 2 * picture.height), Image.Resampling.NEAREST))
    times = [round(1000 * SECONDS)] * (FRAMES - 1) + [round(4000 * SECONDS)]
    pictures[0].save(
        FOLDER / "clips.webp", save_all=True, append_images=pictures[1:], duration=times, loop=0, quality=80
    )
