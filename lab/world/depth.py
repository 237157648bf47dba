"""How far away what a scene shows is: the truth that the scenes' depth is defined by.

All objects are flat, face the camera and are of one true size, so an object is the nearer the larger it looks: its
distance is NEAR / its radius in pixels. Colour, shape and place say nothing. The background is a wall behind them all.
"""

import numpy as np

from .data import SIZE, Scene, render

NEAR = 40.0  # the largest radius of an object, in pixels, which is at distance 1; the smallest, 17, is at 2.35
WALL = 4.0  # the distance of the background


def disparity(scene: Scene) -> np.ndarray:
    """1 / distance of each pixel, float (SIZE, SIZE); at edges in between, by the object's coverage."""
    out = np.full((SIZE, SIZE), 1.0 / WALL)
    for obj in scene["objs"]:
        out += render({**scene, "objs": [obj]}, only_mask=True) * (obj["r"] / NEAR - 1.0 / WALL)
    return out
