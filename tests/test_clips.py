"""The world of clips: what is rendered is read right, frame by frame and by motion, and what is wrong is seen."""

import random

import numpy as np
import pytest
from steer.lab.world.clip_reader import motion_of, score_clip, track
from steer.lab.world.clips import (
    FRAMES,
    MARGIN,
    MOTIONS,
    SIZE,
    caption,
    parse_caption,
    render_clip,
    sample_clip,
    scene_at,
)
from steer.lab.world.data import BACKGROUNDS, COLORS, SHAPES, render
from steer.lab.world.reader import read_image

STEADY = {"shape": "circle", "color": "red", "rgb": COLORS["red"], "cx": 20, "cy": 32, "r": 11}
RIGHT = {"bg": "white", "bg_rgb": BACKGROUNDS["white"], "rel": None,
         "objs": [{**STEADY, "motion": "moving right", "travel": 24}]}  # fmt: skip
TEXT = "a red circle moving right on a white background"


def clips(count, seed=0, two=False):
    rng = random.Random(seed)
    return [sample_clip(rng, two) for _ in range(count)]


@pytest.mark.parametrize("two", [False, True])
def test_every_rendered_clip_is_read_right(two):
    wrong = [caption(clip) for clip in clips(150, two=two) if not score_clip(render_clip(clip), caption(clip))["all"]]
    assert wrong == []


def test_an_object_is_where_its_motion_puts_it():
    for clip in clips(40, seed=1):
        (obj,), frames = clip["objs"], render_clip(clip)
        assert frames.shape == (FRAMES, SIZE, SIZE, 3) and frames.dtype == np.uint8
        centres = track([read_image(frame) for frame in frames], obj["color"])
        way = obj["travel"] * np.array(MOTIONS[obj["motion"]])
        assert np.abs(centres[-1] - centres[0] - way).max() < 1
        steps = np.diff(centres, axis=0)
        assert np.abs(steps - way / (FRAMES - 1)).max() < 1


def test_frames_are_the_scenes_of_the_pictures_world():
    clip = clips(1, two=True)[0]
    for frame, pixels in enumerate(render_clip(clip)):
        assert np.array_equal(pixels, render(scene_at(clip, frame), size=SIZE))
    assert scene_at(clip, 0)["objs"] == clip["objs"]


@pytest.mark.parametrize("two", [False, True])
def test_clips_keep_the_rules(two):
    sampled = clips(300, two=two)
    for clip in sampled:
        colors = [obj["color"] for obj in clip["objs"]]
        assert clip["bg"] not in colors and len(set(colors)) == len(colors) == 1 + two
        for frame in range(FRAMES):
            for obj in scene_at(clip, frame)["objs"]:
                ends = (
                    obj["cx"] - obj["r"],
                    obj["cy"] - obj["r"],
                    SIZE - obj["cx"] - obj["r"],
                    SIZE - obj["cy"] - obj["r"],
                )
                assert min(ends) >= MARGIN - 1e-9
    for key, every in (("shape", set(SHAPES)), ("color", set(COLORS)), ("motion", set(MOTIONS))):
        assert {obj[key] for clip in sampled for obj in clip["objs"]} == every


def test_the_mask_is_the_coverage_of_the_objects():
    clip = clips(1, seed=3)[0]
    frames, mask = render_clip(clip), render_clip(clip, only_mask=True)
    assert mask.shape == (FRAMES, SIZE, SIZE) and mask.max() == 1
    assert np.all(frames[mask == 0] == clip["bg_rgb"]) and np.all(frames[mask == 1] == clip["objs"][0]["rgb"])


@pytest.mark.parametrize("two", [False, True])
def test_caption_and_parse_are_inverse(two):
    for clip in clips(100, two=two):
        parsed = parse_caption(caption(clip))
        assert caption(parsed) == caption(clip)
        assert (parsed["bg"], len(parsed["objs"])) == (clip["bg"], 1 + two)
    assert caption(RIGHT) == TEXT


@pytest.mark.parametrize(
    ("change", "frames", "every", "motion"),
    [
        ((), 1, True, 1),
        (("right", "left"), 1, True, 0),
        (("moving right", "standing still"), 1, True, 0),
        (("circle", "square"), 0, False, 1),
        (("white", "gray"), 0, False, 1),
        (("red", "green"), 0, False, 0),  # there is none whose way could be followed
    ],
)
def test_score_sees_what_is_wrong(change, frames, every, motion):
    text = TEXT.replace(*change) if change else TEXT
    scored = score_clip(render_clip(RIGHT), text)
    assert (scored["frames"], scored["every"], scored["motion"]) == (frames, every, motion)
    assert scored["all"] == (not change)


def test_one_wrong_frame_is_seen():
    frames = render_clip(RIGHT)
    frames[4] = np.array(BACKGROUNDS["white"])
    scored = score_clip(frames, TEXT)
    assert scored == {"frames": 8 / 9, "every": False, "motion": 0, "all": False}


@pytest.mark.parametrize(
    ("centres", "motion"),
    [
        ([(10, 30), (20, 30), (30, 30)], "moving right"),
        ([(30, 30), (20, 31), (10, 30)], "moving left"),
        ([(30, 40), (30, 30), (30, 20)], "moving up"),
        ([(30, 20), (30, 30), (30, 40)], "moving down"),
        ([(30, 20), (31, 20), (30, 21)], "standing still"),
        ([(10, 10), (20, 20), (30, 30)], None),  # aslant
        ([(10, 30), (30, 30), (20, 30)], None),  # and back
        ([(10, 30), (15, 30), (10, 30)], None),
        ([(10, 30), (12, 30), (15, 30)], None),  # too little to tell
        (None, None),
    ],
)
def test_motion_of_a_track(centres, motion):
    assert motion_of(None if centres is None else np.array(centres)) == motion
