"""The pictures that the example workflows start from, drawn here so that none needs a file of its own."""

import random
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from .clips import FRAMES, render_clip
from .clips import SIZE as CLIP_SIZE
from .control_pictures import outlines, silhouettes
from .data import BACKGROUNDS, COLORS, SIZE, Scene, caption, render, sample_scene, scene_of
from .hollow import render_hollow

HOLE = (24, 24, 104, 104)  # pixels of the inpainting picture to redraw (left, top, right, bottom); whole latents
CROSS = 36, 95, 25  # centre and radius in pixels of the outline
JPEG_QUALITY = 10
BOX, BOXED = (8, 24, 48, 48), range(1, 5)  # pixels of the gray box of the spoiled clip, and the frames that have it
CLIP_HOLE = (0, 16, 56, 56)  # pixels: the box, and round it what the autoencoder mixes with it
TRAINING, TRAINING_PICTURES = "steer_training", 32
SUBJECT, SUBJECT_PICTURES = "steer_subject", 10
SUBJECT_IS = "purple", "red"  # and what its captions call it
KEPT_WIDTH, KEPT_COLUMNS = 96, 40  # of the outpainting picture, whose circle the cut goes through, and of its clip
RED_STROKES = [
    [(22, 66), (44, 58), (70, 66)],
    [(72, 73), (46, 72), (25, 76)],
    [(30, 86), (52, 82), (66, 84)],
    [(58, 95), (42, 98)],
]
FINE = 4  # strokes are drawn this many times larger


def write_inputs(folder: Path, size: int = SIZE) -> dict[str, Path]:
    """Write `strokes.png`, `inpaint.png`, `outpaint.png`, `photo.png`, `segmentation.png` and six more.

    All scaled to `size` pixels. `inpaint.png` is transparent where it is to be redrawn; `outpaint.png` has three
    quarters of the width; `photo.png` is the real picture to invert; `steer_example.png` shows what to come close to,
    under a name that no host has; `outline.png` and `silhouette.png` tell a ControlNet and a T2I-Adapter the form;
    `photo_jpeg.png` is what a JPEG of `photo.png` decodes to; `photo_gray.png` has its gray alone.
    `clip.png` is animated, and has the size that the video model draws whatever `size` is; `clip_left.png` has its left
    columns alone; in `clip_box.png` a gray box hides the object in some frames, and `clip_hole.png` is one of them,
    transparent where it is to be redrawn; `clip_map.png` is a colour map for each frame. The paths by name.
    """
    pictures = {"strokes": strokes(), "inpaint": inpaint(), "outpaint": outpaint(), "photo": photo(),
                "segmentation": segmentation(), "steer_example": example(), "outline": outline(),
                "silhouette": silhouette(), "photo_jpeg": photo(),
                "photo_gray": photo().convert("L")}  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    paths = {name: folder / f"{name}.png" for name in pictures}
    for name, picture in pictures.items():
        scaled = tuple(round(side * size / SIZE) for side in picture.size)
        # the colours of a map mean something: none in between
        way = Image.Resampling.NEAREST if name == "segmentation" else Image.Resampling.LANCZOS
        picture = picture.resize(scaled, way if scaled != picture.size else None)
        (compressed(picture) if name == "photo_jpeg" else picture).save(paths[name])
    clips = {"clip": clip(), "clip_box": clip_box(), "clip_left": clip_left(), "clip_map": clip_map()}
    for name, (first, *rest) in clips.items():
        paths[name] = folder / f"{name}.png"
        first.save(paths[name], save_all=True, append_images=rest, duration=125, loop=0)
    paths["clip_hole"] = folder / "clip_hole.png"
    clip_hole().save(paths["clip_hole"])
    write_training_set(folder / TRAINING, size)
    write_subject(folder / SUBJECT, size)
    return paths


def write_training_set(folder: Path, size: int = SIZE) -> None:
    """Write pictures of one object with a white core, `00.png` and so on, and beside each its caption, `00.txt`."""
    rng = random.Random(3)
    scenes = [sample_scene(rng, two=False) for _ in range(TRAINING_PICTURES)]
    _write_captioned(folder, size, [(render_hollow(scene), caption(scene)) for scene in scenes])


def write_subject(folder: Path, size: int = SIZE) -> None:
    """Write pictures of one subject, a purple heart, on each background in turn, and beside each a caption.

    The caption names the class that a rare word is to set the subject apart from: a red heart.
    """
    rng, captioned = random.Random(5), []
    for number in range(SUBJECT_PICTURES):
        bg = list(BACKGROUNDS)[number % len(BACKGROUNDS)]
        place = sample_scene(rng, two=False)["objs"][0]
        heart, of_class = (scene_of("heart", color, bg, place["cx"], place["cy"], place["r"]) for color in SUBJECT_IS)
        captioned.append((render(heart), caption(of_class)))
    _write_captioned(folder, size, captioned)


def _write_captioned(folder: Path, size: int, captioned: list[tuple[np.ndarray, str]]) -> None:
    folder.mkdir(exist_ok=True)
    for number, (picture, text) in enumerate(captioned):
        Image.fromarray(picture).resize((size, size), Image.Resampling.LANCZOS).save(folder / f"{number:02}.png")
        (folder / f"{number:02}.txt").write_text(text)


def strokes() -> Image.Image:
    """A crude painting: a red blob, narrower below, in a few uneven strokes on a brushed blue ground."""
    rng = random.Random(4)
    picture = Image.new("RGB", (SIZE * FINE, SIZE * FINE), BACKGROUNDS["blue"])
    draw = ImageDraw.Draw(picture)
    for y in range(0, SIZE + 8, 9):
        _stroke(draw, rng, [(-8, y), (45, y + 3), (90, y - 2), (136, y + 2)], COLORS["blue"], 9)
    for points in RED_STROKES:
        _stroke(draw, rng, points, COLORS["red"], 17)
    return picture.resize((SIZE, SIZE), Image.Resampling.BOX).filter(ImageFilter.GaussianBlur(0.7))


def inpaint() -> Image.Image:
    """A red circle on blue, transparent (RGBA) in a hole around it; what lies in the hole is still in the colours."""
    return with_hole(Image.fromarray(render(scene_of("circle", "red", "blue", 64, 64, 32))), HOLE)


def with_hole(picture: Image.Image, hole: tuple[int, int, int, int]) -> Image.Image:
    """The picture (RGBA), transparent in the hole, where its colours stay."""
    alpha = Image.new("L", picture.size, 255)
    alpha.paste(0, hole)
    picture = picture.convert("RGBA")
    picture.putalpha(alpha)
    return picture


def outpaint() -> Image.Image:
    """The left part of a red circle on white; the circle is cut, so that what is added has something to go on."""
    whole = Image.fromarray(render(scene_of("circle", "red", "white", 78, 64, 34)))
    return whole.crop((0, 0, KEPT_WIDTH, SIZE))


def photo() -> Image.Image:
    """A picture the model did not make: a red heart above a yellow star on black."""
    return Image.fromarray(render(_photographed()))


def compressed(picture: Image.Image) -> Image.Image:
    """What a bad JPEG of it (Pillow's, JPEG_QUALITY, colours at half the size) decodes to."""
    file = BytesIO()
    picture.save(file, "JPEG", quality=JPEG_QUALITY)
    return Image.open(file)


def segmentation() -> Image.Image:
    """A layout in plain colours: red (#e6194b) at the lower left, blue (#4363d8) at the upper right, the rest white."""
    picture = Image.new("RGB", (SIZE, SIZE), "white")
    draw = ImageDraw.Draw(picture)
    draw.ellipse((8, 64, 58, 114), fill="#e6194b")
    draw.ellipse((72, 14, 118, 60), fill="#4363d8")
    return picture


def example() -> Image.Image:
    """A yellow triangle on gray, in the left half."""
    return Image.fromarray(render(scene_of("triangle", "yellow", "gray", 36, 70, 26)))


def outline() -> Image.Image:
    """A cross's outline, white on black, at the lower left."""
    return Image.fromarray(outlines(scene_of("cross", "green", "black", *CROSS)))


def silhouette() -> Image.Image:
    """Where `photo` has its heart and its star, white on black."""
    return Image.fromarray(silhouettes(_photographed()))


def clip() -> list[Image.Image]:
    """A clip that the video model did not make: a red circle moving right on white."""
    scene = scene_of("circle", "red", "white", 18, 34, 13)
    scene["objs"][0] |= {"motion": "moving right", "travel": 28}
    return [Image.fromarray(frame) for frame in render_clip(scene)]


def clip_left() -> list[Image.Image]:
    """The left columns of the clip, out of which the circle moves."""
    return [frame.crop((0, 0, KEPT_COLUMNS, frame.height)) for frame in clip()]


def clip_box() -> list[Image.Image]:
    """The clip with a gray box over the circle in four of its frames."""
    frames = clip()
    for number in BOXED:
        frames[number].paste(BACKGROUNDS["gray"], BOX)
    return frames


def clip_map() -> list[Image.Image]:
    """A map for each frame of a clip: a red disc (#e6194b) that goes along the bottom, to the right, on white."""
    maps = [Image.new("RGB", (CLIP_SIZE, CLIP_SIZE), "white") for _ in range(FRAMES)]
    for number, picture in enumerate(maps):
        left = 2 + 26 * number / (FRAMES - 1)
        ImageDraw.Draw(picture).ellipse((left, 30, left + 32, 62), fill="#e6194b")
    return maps


def clip_hole() -> Image.Image:
    """A frame with the box, transparent (RGBA) there and a latent pixel round it."""
    return with_hole(clip_box()[BOXED.start], CLIP_HOLE)


def hole_mask() -> np.ndarray:
    """The hole of `inpaint` as a float mask (SIZE, SIZE), 1 inside."""
    return 1.0 - np.asarray(inpaint().getchannel("A")) / 255.0


def _photographed() -> Scene:
    heart, star = scene_of("heart", "red", "black", 50, 36, 24), scene_of("star", "yellow", "black", 76, 94, 25)
    return {**heart, "objs": heart["objs"] + star["objs"]}


def _stroke(draw: ImageDraw.ImageDraw, rng: random.Random, points: list, color: tuple, width: float) -> None:
    """A brush pulled through the points: its width, colour and path waver."""
    shade = tuple(min(255, max(0, value + rng.randint(-22, 22))) for value in color)
    for (x0, y0), (x1, y1) in zip(points, points[1:], strict=False):
        for step in range(40):
            part = step / 39
            half = (width + rng.uniform(-3, 3)) / 2
            x = x0 + (x1 - x0) * part + rng.uniform(-1, 1)
            y = y0 + (y1 - y0) * part + rng.uniform(-1, 1)
            box = [(x - half) * FINE, (y - half) * FINE, (x + half) * FINE, (y + half) * FINE]
            draw.ellipse(box, fill=shade)
