"""Clips of moving shapes: the pictures' world at 64x64, nine frames of it, sampled, described by a caption, rendered.

A clip is a scene of `data.py` (`{"bg", "bg_rgb", "rel": None, "objs"}`) as its first frame shows it; each object has
besides `motion`, of MOTIONS, and `travel`, how far it is in the last frame from its place in the first, in pixels.
"""

import math
from random import Random

import numpy as np

from .data import BACKGROUNDS, COLORS, SHAPES, Scene, jittered, render

SIZE = 64  # pixels, both ways
FRAMES = 9  # 4n + 1, as video autoencoders of time stride 4 take them
MOTIONS = {
    "moving left": (-1, 0),
    "moving right": (1, 0),
    "moving up": (0, -1),
    "moving down": (0, 1),
    "standing still": (0, 0),
}
RADIUS, SMALL_RADIUS = (12, 16), (10, 12)  # of a single object, and of two
TRAVEL = 12, 28
MARGIN = 2  # pixels that stay free at the border
APART = 3  # pixels at least between two objects' circles, in every frame

Clip = dict


def sample_clip(rng: Random, two: bool = False) -> Clip:
    """A random clip of one or two objects, of different colours, none of them the background's; no two ever touch."""
    bg = rng.choice(list(BACKGROUNDS))
    colors = rng.sample([color for color in COLORS if color != bg], 2)
    clip = {"bg": bg, "bg_rgb": jittered(BACKGROUNDS[bg], rng), "rel": None}
    while True:
        clip["objs"] = [_sample_object(rng, color, SMALL_RADIUS if two else RADIUS) for color in colors[: 1 + two]]
        if not two or _apart(*clip["objs"]):
            return clip


def caption(clip: Clip) -> str:
    """What the model reads: "a red circle moving right on a white background"; two objects are joined by "and"."""
    objs = [f"a {obj['color']} {obj['shape']} {obj['motion']}" for obj in clip["objs"]]
    return " and ".join(objs) + f" on a {clip['bg']} background"


def parse_caption(text: str) -> Clip:
    """The clip of a caption, without geometry and RGB: the inverse of `caption`."""
    front, bg = text.removesuffix(" background").split(" on a ")
    parts = [part.split(" ", 3)[1:] for part in front.split(" and ")]
    return {"bg": bg, "rel": None, "objs": [dict(zip(("color", "shape", "motion"), p, strict=True)) for p in parts]}


def scene_at(clip: Clip, frame: int) -> Scene:
    """The scene that a frame shows."""
    return {**clip, "objs": [_moved(obj, frame / (FRAMES - 1)) for obj in clip["objs"]]}


def render_clip(clip: Clip, only_mask: bool = False) -> np.ndarray:
    """The frames, uint8 (FRAMES, SIZE, SIZE, 3); with only_mask the objects' coverage, float 0..1."""
    return np.stack([render(scene_at(clip, frame), only_mask, SIZE) for frame in range(FRAMES)])


def _sample_object(rng: Random, color: str, radii: tuple[float, float]) -> dict:
    """An object whose whole way lies in the frame."""
    motion, r = rng.choice(list(MOTIONS)), rng.uniform(*radii)
    low, high = r + MARGIN, SIZE - r - MARGIN
    travel = rng.uniform(TRAVEL[0], min(TRAVEL[1], high - low)) if any(MOTIONS[motion]) else 0.0
    ways = [travel * direction for direction in MOTIONS[motion]]
    cx, cy = (rng.uniform(low - min(way, 0), high - max(way, 0)) for way in ways)
    shape = rng.choice(SHAPES)
    return {"shape": shape, "color": color, "rgb": jittered(COLORS[color], rng), "cx": cx, "cy": cy, "r": r,
            "motion": motion, "travel": travel}  # fmt: skip


def _moved(obj: dict, part: float) -> dict:
    """The object after this part of its way."""
    dx, dy = MOTIONS[obj["motion"]]
    way = part * obj["travel"]
    return {**obj, "cx": obj["cx"] + way * dx, "cy": obj["cy"] + way * dy}


def _apart(first: dict, second: dict) -> bool:
    """Whether two objects never come near each other."""
    parts = [frame / (FRAMES - 1) for frame in range(FRAMES)]
    pairs = [(_moved(first, part), _moved(second, part)) for part in parts]
    gaps = [math.hypot(a["cx"] - b["cx"], a["cy"] - b["cy"]) for a, b in pairs]
    return min(gaps) >= first["r"] + second["r"] + APART
