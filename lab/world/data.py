"""Scenes of coloured shapes: sampled, described by a caption, and rendered.

A scene is `{"bg", "bg_rgb", "rel", "objs": [{"shape", "color", "rgb", "cx", "cy", "r"}, ...]}`: background colour by
name and as 0..255 RGB, relation of the first object to the second (None for one object), and per object its centre
and radius in pixels. For the ground truth of an edit, change a scene's fields and render it again.

The checkpoint was trained on exactly this distribution: a change here asks for a new training.
"""

import math
from random import Random

import numpy as np
from PIL import Image, ImageDraw

SIZE = 128  # pixels, both ways
SHAPES = ["circle", "square", "triangle", "star", "cross", "heart"]
COLORS = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (40, 80, 220),
    "yellow": (240, 215, 50),
    "purple": (140, 50, 180),
    "orange": (245, 135, 30),
    "pink": (250, 150, 195),
}
BACKGROUNDS = {
    "white": (245, 245, 245),
    "black": (15, 15, 15),
    "gray": (128, 128, 128),
    "blue": COLORS["blue"],
    "green": COLORS["green"],
}
RELATIONS = ["left of", "above"]
JITTER = 8  # colours vary by up to this much per channel
SUPERSAMPLING = 4
MARGIN = 4  # pixels that stay free at the border
TWO_SHARE = 0.4  # of sampled scenes hold two objects

Scene = dict
Point = tuple[float, float]


def polygon(shape: str, cx: float, cy: float, r: float) -> list[Point]:
    """Outline of a shape inside (roughly) the circle of radius r."""
    if shape == "square":
        half = 0.85 * r
        return [(cx - half, cy - half), (cx + half, cy - half), (cx + half, cy + half), (cx - half, cy + half)]
    if shape == "triangle":
        return [(cx, cy - r), (cx + r, cy + 0.8 * r), (cx - r, cy + 0.8 * r)]
    if shape == "cross":
        return _cross(cx, cy, r)
    if shape == "star":
        return _ring(cx, cy, [math.pi * i / 5 for i in range(10)], [r, 0.42 * r] * 5)
    turn = [math.tau * i / 72 for i in range(72)]
    return _ring(cx, cy, turn, [r] * 72) if shape == "circle" else _heart(cx, cy, r, turn)


def sample_scene(rng: Random, two: bool | None = None) -> Scene:
    """A random scene of one or two objects; `two` decides which, None draws it.

    No object has the background's colour, and two objects differ in colour; two objects lie in the two halves.
    """
    bg = rng.choice(list(BACKGROUNDS))
    colors = rng.sample([color for color in COLORS if color != bg], 2)
    two = rng.random() < TWO_SHARE if two is None else two
    bg_rgb = jittered(BACKGROUNDS[bg], rng)
    rel = rng.choice(RELATIONS) if two else None
    objs = [_sample_object(rng, colors[index], rel, index) for index in range(1 + two)]
    return {"bg": bg, "bg_rgb": bg_rgb, "rel": rel, "objs": objs}


def scene_of(shape: str, color: str, bg: str, cx: float = 64, cy: float = 64, r: float = 32) -> Scene:
    """The scene of one object, in the unvaried colours."""
    obj = {"shape": shape, "color": color, "rgb": COLORS[color], "cx": cx, "cy": cy, "r": r}
    return {"bg": bg, "bg_rgb": BACKGROUNDS[bg], "rel": None, "objs": [obj]}


def caption(scene: Scene) -> str:
    """What the model was trained to read: "a red circle left of a blue star on a white background"."""
    objs = [f"a {obj['color']} {obj['shape']}" for obj in scene["objs"]]
    return f" {scene['rel']} ".join(objs) + f" on a {scene['bg']} background"


def parse_caption(text: str) -> Scene:
    """The scene of a caption, without geometry and RGB: the inverse of `caption`."""
    front, bg = text.removesuffix(" background").split(" on a ")
    rel = next((rel for rel in RELATIONS if f" {rel} " in front), None)
    parts = front.split(f" {rel} ") if rel else [front]
    objs = [dict(zip(("color", "shape"), part.split()[1:], strict=True)) for part in parts]
    return {"bg": bg, "rel": rel, "objs": objs}


def render(scene: Scene, only_mask: bool = False, size: int = SIZE) -> np.ndarray:
    """The picture, uint8 (size, size, 3); with only_mask the objects' coverage, float 0..1 (size, size)."""
    mode, paper = ("L", 0) if only_mask else ("RGB", tuple(scene["bg_rgb"]))
    picture = Image.new(mode, (size * SUPERSAMPLING, size * SUPERSAMPLING), paper)
    draw = ImageDraw.Draw(picture)
    for obj in scene["objs"]:
        outline = polygon(obj["shape"], obj["cx"], obj["cy"], obj["r"])
        ink = 255 if only_mask else tuple(obj["rgb"])
        draw.polygon([(x * SUPERSAMPLING, y * SUPERSAMPLING) for x, y in outline], fill=ink)
    pixels = np.asarray(picture.resize((size, size), Image.Resampling.BOX))
    return pixels / 255.0 if only_mask else pixels


def jittered(rgb: tuple[int, int, int], rng: Random) -> tuple[int, ...]:
    """The colour, each channel changed by up to JITTER."""
    return tuple(min(255, max(0, value + rng.randint(-JITTER, JITTER))) for value in rgb)


def _sample_object(rng: Random, color: str, rel: str | None, index: int) -> dict:
    """The first or second object of a scene; with a relation it stays in its half."""
    end = SIZE - MARGIN
    r = rng.uniform(17, 26) if rel else rng.uniform(20, 40)
    along = rng.uniform(r + MARGIN, (62 if rel else end) - r)
    across = rng.uniform(r + MARGIN, end - r)
    along += SIZE // 2 * index
    cx, cy = (across, along) if rel == "above" else (along, across)
    shape = rng.choice(SHAPES)
    return {"shape": shape, "color": color, "rgb": jittered(COLORS[color], rng), "cx": cx, "cy": cy, "r": r}


def _ring(cx: float, cy: float, angles: list[float], radii: list[float]) -> list[Point]:
    return [(cx + q * math.sin(a), cy - q * math.cos(a)) for a, q in zip(angles, radii, strict=True)]


def _cross(cx: float, cy: float, r: float) -> list[Point]:
    a, b = 0.34 * r, r
    corners = [(-a, -b), (a, -b), (a, -a), (b, -a), (b, a), (a, a)]
    corners += [(a, b), (-a, b), (-a, a), (-b, a), (-b, -a), (-a, -a)]
    return [(cx + x, cy + y) for x, y in corners]


def _heart(cx: float, cy: float, r: float, turn: list[float]) -> list[Point]:
    def height(t: float) -> float:
        return 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)

    return [(cx + r * math.sin(t) ** 3, cy - r * height(t) / 15) for t in turn]
