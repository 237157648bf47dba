"""Words on clips: whether their heat follows what moves, and whether things go where frame after frame is painted."""

import random
from dataclasses import replace

import comfy.samplers
import numpy as np
import torch
from PIL import Image, ImageDraw

from ..attention.attention_maps import Recording, heat
from ..lab.comfy.runs import Noise, encode_texts, host_guider, noise_of, run_seeded, sigmas_of
from ..lab.models import stock
from ..lab.weights import WAN
from ..lab.world.clip_reader import score_clip
from ..lab.world.clips import FRAMES, MOTIONS, SIZE, caption, sample_clip, scene_at
from ..lab.world.metrics import markdown_table, object_mask
from ..lab.world.reader import read_image
from ..nodes.attention_maps import SteerCaptureAttention, frames_shown
from ..nodes.host.text import tokenized
from ..nodes.paint_with_words import SteerPaintWithWords, SteerRegion
from .heatmaps import judged, object_masks
from .runner import FOLDER
from .turns import to_bytes

CLIPS, BATCH, STEPS, CFG = 32, 16, 20, 4.0
SHAPE = 16, (FRAMES - 1) // 4 + 1, SIZE // 8, SIZE // 8  # of a clip's latent
WEIGHTS = 0.2, 0.4, 0.8
SQUARE = 34  # pixels: the side of what is painted
SHEET = 6  # clips
EULER = comfy.samplers.sampler_object("euler")
Taken = tuple[dict, np.ndarray, Recording]


def run() -> str:
    tools = stock.load(WAN)
    clip = tools[1]
    singles, pairs = (generated(*tools, two) for two in (False, True))
    sheet: list[np.ndarray] = []
    tables = [painted(*tools, standing, sheet) for standing in (False, True)]
    Image.fromarray(np.concatenate(sheet)).save(FOLDER / "clip_attention.png")
    return (
        f"# Attention on clips\n\nThe lab's video model of Wan's structure, {FRAMES} frames of {SIZE}x{SIZE}, euler, "
        f"{STEPS} steps, cfg {CFG:g}.\n\n## Heatmaps\n\n{CLIPS} captions of one object; the heat of colour and shape, "
        "as the node shows it for each frame, against the object in that frame. Hottest on it: how often the hottest "
        "place lies on the object, of all frames. Follows: the same in all frames of a clip, of the clips whose object "
        f"moves.\n\n{markdown_table([on_one_object(clip, singles)])}\n{on_two_objects(clip, pairs)}\n\n"
        f"## Painting\n\n{CLIPS} captions of one moving object, whose colour and shape are painted, frame by frame, "
        f"into a square of {SQUARE} pixels that moves along, from a place of its own; the same noise for all rows. In "
        "place: the object's centre is in the square, of all frames, and in every frame of a clip. Motion, all right: "
        f"as the caption says.\n\n{tables[0]}\nThe same squares, and captions that say `standing still`. Motion: as "
        f"the square's.\n\n{tables[1]}\n![frames](clip_attention.png)\n\nFrames of {SHEET} clips of each table, "
        f"painted at {WEIGHTS[1]:g}."
    )


def generated(model, clip, vae, two: bool) -> list[Taken]:
    """(what was asked for, frames, their attention) of each clip."""
    rng, taken = random.Random(3), []
    for first in range(0, CLIPS, BATCH):
        asked = [sample_clip(rng, two) for _ in range(BATCH)]
        guider = host_guider(model, encode_texts(clip, [caption(one) for one in asked]), encode_texts(clip, [""]), CFG)
        empty, noise = {"samples": torch.zeros(BATCH, *SHAPE)}, Noise(noise_of((BATCH, *SHAPE), first), first)
        latent, seen = SteerCaptureAttention.execute(
            noise, guider, EULER, sigmas_of(model, STEPS), empty, 0.0, 0.0
        ).args
        shown = decoded(vae, latent["samples"])
        taken += [
            (asked[i], shown[i], replace(seen, maps={grid: maps[i : i + 1] for grid, maps in seen.maps.items()}))
            for i in range(BATCH)
        ]
    return taken


def decoded(vae, latents: torch.Tensor) -> np.ndarray:
    """uint8 (n, FRAMES, SIZE, SIZE, 3)."""
    return to_bytes(vae.decode(latents)).reshape(-1, FRAMES, SIZE, SIZE, 3)


def heat_of(clip, taken: Taken, number: int) -> np.ndarray:
    """(FRAMES, SIZE, SIZE): that of an object's colour and shape."""
    asked, _, seen = taken
    obj = asked["objs"][number]
    heats = heat(seen, tokenized(clip, caption(asked)).positions(f"{obj['color']} {obj['shape']}"), SIZE, SIZE)
    return heats[frames_shown(seen, FRAMES)].numpy()


def on_one_object(clip, singles: list[Taken]) -> dict:
    heats = np.stack([heat_of(clip, taken, 0) for taken in singles])
    objects = np.stack([[object_mask(frame) for frame in frames] for _, frames, _ in singles])
    hottest = heats.reshape(CLIPS, FRAMES, -1).argmax(-1)[..., None]
    on_it = np.take_along_axis(objects.reshape(CLIPS, FRAMES, -1), hottest, -1)[..., 0]
    moving = [any(MOTIONS[asked["objs"][0]["motion"]]) for asked, _, _ in singles]
    return {
        **judged(heats.reshape(-1, SIZE, SIZE), objects.reshape(-1, SIZE, SIZE)),
        "hottest on it": f"{on_it.mean():.1%}",
        "follows": f"{on_it[moving].all(1).mean():.1%} of {sum(moving)}",
    }


def on_two_objects(clip, pairs: list[Taken]) -> str:
    """Of the frames that show both as asked: in how many the own words of an object are hotter in it."""
    marks = []
    for taken in pairs:
        asked, frames, _ = taken
        named = sorted((obj["color"], obj["shape"]) for obj in asked["objs"])
        heats = [heat_of(clip, taken, number) for number in (0, 1)]
        for index, frame in enumerate(frames):
            if sorted((obj["color"], obj["shape"]) for obj in read_image(frame)["objs"]) == named:
                places = object_masks(frame, asked)
                marks += [heats[i][index][places[i]].mean() > heats[1 - i][index][places[i]].mean() for i in (0, 1)]
    return (
        f"Two objects, the frames of {CLIPS} clips that show both as asked: of {len(marks)} objects in frames the own "
        f"words are hotter than the other's in {np.mean(marks):.1%}."
    )


def painted(model, clip, vae, standing: bool, sheet: list[np.ndarray]) -> str:
    """A row for each weight; some frames go to the sheet."""
    rng = random.Random(11)
    paths = [path(rng) for _ in range(CLIPS)]
    rows = []
    for weight in (0.0, *WEIGHTS):
        clips = [
            shown for first in range(0, CLIPS, BATCH)
            for shown in drawn(model, clip, vae, paths[first : first + BATCH], standing, weight, first)
        ]  # fmt: skip
        scores = [scored(*pair, standing) for pair in zip(paths, clips, strict=True)]
        shares = {name: f"{np.mean([one[name] for one in scores]):.1%}" for name in scores[0]}
        rows.append({"weight": weight or "not painted", **shares})
        if weight == WEIGHTS[1]:
            sheet += [np.concatenate(outlined(*pair), 1) for pair in list(zip(paths, clips, strict=True))[:SHEET]]
    return markdown_table(rows)


def path(rng: random.Random) -> dict:
    """A clip of one moving object: what is asked for, and where."""
    while True:
        one = sample_clip(rng)
        if any(MOTIONS[one["objs"][0]["motion"]]):
            return one


def drawn(model, clip, vae, paths: list[dict], standing: bool, weight: float, seed: int) -> list[np.ndarray]:
    """A clip for each path. Words differ from caption to caption, so each is a run of its own."""
    sigmas = sigmas_of(model, STEPS)
    clips = []
    for index, one in enumerate(paths):
        text, told, obj = asked(one, standing), model, one["objs"][0]
        positive = encode_texts(clip, [text])
        if weight:
            region = SteerRegion.execute(torch.from_numpy(squares(one)).float(), f"{obj['color']} {obj['shape']}", 1.0)
            told, positive = SteerPaintWithWords.execute(model, clip, text, region[0], weight).args
        guider = host_guider(told, positive, encode_texts(clip, [""]), CFG)
        latent = run_seeded(guider, EULER, sigmas, torch.zeros(1, *SHAPE), seed=seed + index)
        clips += list(decoded(vae, latent))
    return clips


def asked(one: dict, standing: bool) -> str:
    if not standing:
        return caption(one)
    return caption({**one, "objs": [{**one["objs"][0], "motion": "standing still"}]})


def squares(one: dict) -> np.ndarray:
    """bool (FRAMES, SIZE, SIZE): the square about the path in each frame."""
    masks = np.zeros((FRAMES, SIZE, SIZE), bool)
    for frame, mask in enumerate(masks):
        (obj,) = scene_at(one, frame)["objs"]
        top, left = (max(0, round(obj[key] - SQUARE / 2)) for key in ("cy", "cx"))
        mask[top : top + SQUARE, left : left + SQUARE] = True
    return masks


def scored(one: dict, clip: np.ndarray, standing: bool) -> dict[str, float]:
    """Of a clip beside its path."""
    read = [read_image(frame)["objs"][:1] for frame in clip]
    there = [
        bool(objs) and bool(mask[round(objs[0]["cy"]), round(objs[0]["cx"])])
        for objs, mask in zip(read, squares(one), strict=True)
    ]
    right, right_motion = score_clip(clip, asked(one, standing)), score_clip(clip, caption(one))["motion"]
    shares = {"in place": float(np.mean(there)), "in every frame": float(all(there)), "motion": right_motion}
    return {**shares, "frames right": right["frames"]} | ({} if standing else {"all right": float(right["all"])})


def outlined(one: dict, clip: np.ndarray) -> list[np.ndarray]:
    """The frames with the squares drawn on them."""
    framed = []
    for frame, mask in zip(clip, squares(one), strict=True):
        picture = Image.fromarray(frame)
        rows, columns = np.nonzero(mask)
        ImageDraw.Draw(picture).rectangle([int(v) for v in (columns.min(), rows.min(), columns.max(), rows.max())],
                                          outline="#ff00ff")  # fmt: skip
        framed.append(np.asarray(picture))
    return framed
