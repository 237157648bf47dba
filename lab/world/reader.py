"""An exact reader of shape pictures, without learned parts.

Background by the median of the border; objects by connected components; colour by the nearest palette entry; shape by
overlap (IoU) of the object, stretched from its bounding box, with each shape's template. Right on every one of 2000
fresh renders.
"""

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from .data import BACKGROUNDS, COLORS, SHAPES, SUPERSAMPLING, parse_caption, polygon

BORDER = 3  # pixels, where only background is expected
DISTANCE = 45  # in RGB, from the background: what is further away belongs to an object
MIN_AREA = 60  # pixels, less is not an object
TEMPLATE = 48  # side of the templates in pixels
APART = 10  # pixels between two centres that make "left of" and "above" true


def read_image(picture: np.ndarray) -> dict:
    """What a uint8 (H, W, 3) picture shows: {"bg", "bg_rgb", "objs"}, the largest object first.

    An object is {"shape", "color", "rgb", "iou", "cx", "cy", "area", "box"}: `iou` with its shape's template, `box`
    (left, top, right, bottom) in pixels.
    """
    pixels = picture.astype(float)
    bg = np.median(_border(pixels), 0)
    labels, _ = ndimage.label(distance(pixels, bg) > DISTANCE)
    found = enumerate(ndimage.find_objects(labels), 1)
    objs = [_read_object(pixels[window], labels[window] == number, bg, window) for number, window in found]
    objs = sorted((obj for obj in objs if obj), key=lambda obj: -obj["area"])
    return {"bg": nearest(bg, BACKGROUNDS), "bg_rgb": bg.tolist(), "objs": objs}


def distance(picture: np.ndarray, rgb) -> np.ndarray:
    """(H, W): how far each pixel is from a colour, in RGB."""
    return np.sqrt(((picture.astype(float) - np.asarray(rgb)) ** 2).sum(-1))


def score(picture: np.ndarray, text: str) -> dict:
    """How a uint8 (H, W, 3) picture matches a caption.

    {"bg", "count": bool; "color", "shape": share of the objects; "rel": bool, only where two objects are asked for;
    "iou": mean with the templates; "all": everything right}.
    """
    want, got = parse_caption(text), read_image(picture)
    asked, objs = want["objs"], got["objs"]
    out = {"bg": got["bg"] == want["bg"], "count": len(objs) == len(asked)}
    objs = objs[: len(asked)]
    if len(asked) == 2:
        objs, out["rel"] = _by_place(objs, asked, "cx" if want["rel"] == "left of" else "cy")
    pairs = list(zip(asked, objs))  # noqa: B905 (fewer objects may be there than asked for)
    out["color"] = sum(wanted["color"] == obj["color"] for wanted, obj in pairs) / len(asked)
    out["shape"] = sum(wanted["shape"] == obj["shape"] for wanted, obj in pairs) / len(asked)
    out["iou"] = sum(obj["iou"] for _, obj in pairs) / len(asked)
    out["all"] = all(out[key] == 1 for key in out if key != "iou")
    return out


def nearest(rgb, palette: dict) -> str:
    """The name of the closest colour."""
    return min(palette, key=lambda name: sum((a - b) ** 2 for a, b in zip(rgb, palette[name], strict=True)))


def _border(pixels: np.ndarray) -> np.ndarray:
    sides = pixels[:BORDER], pixels[-BORDER:], pixels[:, :BORDER], pixels[:, -BORDER:]
    return np.concatenate([side.reshape(-1, 3) for side in sides])


def _read_object(pixels: np.ndarray, inside: np.ndarray, bg: np.ndarray, window: tuple[slice, slice]) -> dict | None:
    """One connected component, in its window of the picture; None when it is too small to be an object."""
    if inside.sum() < MIN_AREA:
        return None
    core = ndimage.binary_erosion(inside, iterations=2)
    rgb = np.median(pixels[core if core.sum() > 10 else inside], 0)
    # the edge is half way between the background and this object's colour
    cover = np.clip(((pixels - bg) @ (rgb - bg)) / max(1.0, ((rgb - bg) ** 2).sum()), 0, 1) * inside
    ys, xs = np.nonzero(cover > 0.5)
    if len(ys) < MIN_AREA:
        return None
    top, left = window[0].start, window[1].start
    y0, y1, x0, x1 = ys.min(), ys.max() + 1, xs.min(), xs.max() + 1
    shape, iou = _read_shape(cover[y0:y1, x0:x1])
    box = [int(x0 + left), int(y0 + top), int(x1 + left), int(y1 + top)]
    return {
        "shape": shape,
        "iou": iou,
        "color": nearest(rgb, COLORS),
        "rgb": rgb.tolist(),
        "cx": float(xs.mean() + left),
        "cy": float(ys.mean() + top),
        "area": len(ys),
        "box": box,
    }


def _read_shape(cover: np.ndarray) -> tuple[str, float]:
    """The shape whose template overlaps the object's coverage best, and that IoU."""
    stretched = Image.fromarray((cover * 255).astype(np.uint8)).resize((TEMPLATE, TEMPLATE), Image.Resampling.BILINEAR)
    box = np.asarray(stretched) / 255.0
    ious = {shape: np.minimum(box, t).sum() / np.maximum(box, t).sum() for shape, t in TEMPLATES.items()}
    shape = max(ious, key=ious.get)
    return shape, float(ious[shape])


def _by_place(objs: list[dict], asked: list[dict], axis: str) -> tuple[list[dict], bool]:
    """The objects in the order of those asked for, and whether they stand as asked.

    Matched by colour when that says they are swapped, else by place.
    """
    if len(objs) < 2:
        return objs, False
    objs = sorted(objs, key=lambda obj: obj[axis])
    if [obj["color"] for obj in objs] == [wanted["color"] for wanted in asked][::-1]:
        return objs[::-1], False
    return objs, objs[1][axis] - objs[0][axis] > APART


def _template(shape: str) -> np.ndarray:
    """Coverage of the shape, stretched to fill a square from side to side."""
    side = TEMPLATE * SUPERSAMPLING
    points = np.array(polygon(shape, 0, 0, 1.0))
    low, high = points.min(0), points.max(0)
    picture = Image.new("L", (side, side))
    ImageDraw.Draw(picture).polygon([tuple(point) for point in (points - low) / (high - low) * side], fill=255)
    return np.asarray(picture.resize((TEMPLATE, TEMPLATE), Image.Resampling.BOX)) / 255.0


TEMPLATES = {shape: _template(shape) for shape in SHAPES}
