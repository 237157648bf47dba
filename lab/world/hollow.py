"""The trait that the LoRA teaches: every object has a smaller white copy of itself inside. Drawn, and read exactly."""

import numpy as np
from scipy import ndimage

from .data import Scene, render
from .metrics import object_mask
from .reader import MIN_AREA, distance

CORE = 0.5  # radius of the white copy, of the object's
WHITE = (245, 245, 245)
WHITE_WITHIN = 60  # in RGB; the object colours are further from white
SHARE = 0.1, 0.45  # of an object's area that a white core has; half the radius is a quarter of the area


def render_hollow(scene: Scene) -> np.ndarray:
    """The scene's picture with the trait, uint8 (SIZE, SIZE, 3)."""
    pairs = [(obj, {**obj, "r": CORE * obj["r"], "rgb": WHITE}) for obj in scene["objs"]]
    return render({**scene, "objs": [obj for pair in pairs for obj in pair]})


def read_hollow(picture: np.ndarray) -> tuple[np.ndarray, list[bool]]:
    """The picture with its objects filled, for the reader, and of each object whether it has the trait."""
    filled, hollow = picture.copy(), []
    solid = ndimage.binary_fill_holes(object_mask(picture))
    labels, count = ndimage.label(solid)
    for number in range(1, count + 1):
        inside = labels == number
        core = inside & (distance(picture, WHITE) < WHITE_WITHIN)
        rest = ndimage.binary_erosion(inside & ~core)
        if inside.sum() < MIN_AREA or not rest.any():
            continue
        ring = inside & ~ndimage.binary_erosion(inside, iterations=2)
        filled[inside & ~ring] = np.median(picture[rest], 0)
        hollow.append(bool(SHARE[0] < core.sum() / inside.sum() < SHARE[1]))
    return filled, hollow
