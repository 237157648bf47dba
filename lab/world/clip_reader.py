"""Reads clips exactly: each frame by the pictures' reader, each motion by the track of its object's centre."""

import numpy as np

from .clips import MOTIONS, parse_caption
from .reader import read_image

MOVED = 8  # pixels from first to last frame along the motion's axis; clips are drawn with 12 and more
STILL = 3  # pixels within which the track of a standing object stays, and of a moving one across its axis
BACK = 1.5  # pixels that a moving object may go back from one frame to the next


def score_clip(frames: np.ndarray, text: str) -> dict:
    """How uint8 frames (n, H, W, 3) match a caption.

    {"frames": share of the frames in which background, number, shapes and colours are right; "every": all are;
    "motion": share of the objects that move as asked; "all": everything right}.
    """
    want, seen = parse_caption(text), [read_image(frame) for frame in frames]
    named = sorted((obj["color"], obj["shape"]) for obj in want["objs"])
    right = [one["bg"] == want["bg"] and sorted((o["color"], o["shape"]) for o in one["objs"]) == named for one in seen]
    motions = [motion_of(track(seen, obj["color"])) == obj["motion"] for obj in want["objs"]]
    out = {"frames": sum(right) / len(right), "every": all(right), "motion": sum(motions) / len(motions)}
    return out | {"all": out["every"] and out["motion"] == 1}


def track(seen: list[dict], color: str) -> np.ndarray | None:
    """The centres (n, 2) in pixels of the object of this colour; None where a frame has none or several."""
    objs = [[obj for obj in one["objs"] if obj["color"] == color] for one in seen]
    if any(len(there) != 1 for there in objs):
        return None
    return np.array([(obj["cx"], obj["cy"]) for (obj,) in objs])


def motion_of(centres: np.ndarray | None) -> str | None:
    """The motion of a track, of MOTIONS; None where it is none of them."""
    if centres is None:
        return None
    if np.ptp(centres, 0).max() < STILL:
        return "standing still"
    steps, whole = np.diff(centres, axis=0), centres[-1] - centres[0]
    for motion, direction in MOTIONS.items():
        axis = int(np.abs(direction).argmax())
        along, across = steps[:, axis] * direction[axis], np.ptp(centres[:, 1 - axis])
        if whole[axis] * direction[axis] >= MOVED and along.min() > -BACK and across < STILL:
            return motion
    return None
