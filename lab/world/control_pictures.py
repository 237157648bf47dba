"""What the ControlNet and the T2I-Adapter are told by: outlines and silhouettes, white on black."""

import numpy as np
from PIL import Image, ImageDraw

from .data import SIZE, SUPERSAMPLING, Scene, polygon, render

LINE = 3  # pixels


def outlines(scene: Scene) -> np.ndarray:
    """The objects' outlines, uint8 (SIZE, SIZE, 3)."""
    picture = Image.new("L", (SIZE * SUPERSAMPLING, SIZE * SUPERSAMPLING), 0)
    draw = ImageDraw.Draw(picture)
    for obj in scene["objs"]:
        points = polygon(obj["shape"], obj["cx"], obj["cy"], obj["r"])
        corners = [(x * SUPERSAMPLING, y * SUPERSAMPLING) for x, y in points]
        draw.line([*corners, *corners[:2]], fill=255, width=LINE * SUPERSAMPLING, joint="curve")
    return _rgb(np.asarray(picture.resize((SIZE, SIZE), Image.Resampling.BOX)))


def silhouettes(scene: Scene) -> np.ndarray:
    """The objects, filled, uint8 (SIZE, SIZE, 3)."""
    return _rgb(np.round(render(scene, only_mask=True) * 255).astype(np.uint8))


def _rgb(gray: np.ndarray) -> np.ndarray:
    return np.repeat(gray[..., None], 3, -1)
