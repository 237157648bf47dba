import random

import numpy as np
import pytest
from PIL import Image
from steer.lab.weights import CHECKPOINT
from steer.lab.world.data import (
    BACKGROUNDS,
    COLORS,
    RELATIONS,
    SHAPES,
    SIZE,
    caption,
    parse_caption,
    render,
    sample_scene,
    scene_of,
)
from steer.lab.world.depth import WALL, disparity
from steer.lab.world.hollow import read_hollow
from steer.lab.world.inputs import SUBJECT_PICTURES, TRAINING_PICTURES, write_subject, write_training_set
from steer.lab.world.reader import read_image, score
from steer.lab.world.vocabulary import END, IDS, START, token_ids


def scenes(count, seed=0, two=None):
    rng = random.Random(seed)
    return [sample_scene(rng, two) for _ in range(count)]


def test_reader_is_right_on_fresh_renders():
    wrong = [caption(scene) for scene in scenes(300) if not score(render(scene), caption(scene))["all"]]
    assert wrong == []


def test_reader_finds_place_and_size():
    for scene in scenes(50, two=False):
        (found,), (drawn,) = read_image(render(scene))["objs"], scene["objs"]
        left, top, right, bottom = found["box"]
        assert left - 1 <= drawn["cx"] <= right + 1 and top - 1 <= drawn["cy"] <= bottom + 1
        assert abs(found["area"] - render(scene, only_mask=True).sum()) < 0.05 * found["area"] + 20


@pytest.mark.parametrize(
    "change, wrong",
    [
        ({"bg": "white"}, "bg"),
        ({"shape": "star"}, "shape"),
        ({"color": "green"}, "color"),
    ],
)
def test_score_sees_what_is_wrong(change, wrong):
    drawn = {"shape": "circle", "color": "red", "bg": "black"}
    found = score(render(scene_of(**drawn)), caption(scene_of(**drawn | change)))
    assert not found["all"]
    assert [name for name in ("bg", "count", "shape", "color") if found[name] != 1] == [wrong]


def test_score_sees_a_swapped_pair_and_a_missing_object():
    picture = render(scenes(1, two=True)[0])
    text = caption(scenes(1, two=True)[0])
    rel = next(rel for rel in RELATIONS if rel in text)
    first, rest = text.split(f" {rel} ")
    second, bg = rest.split(" on ")
    assert score(picture, text)["rel"] and not score(picture, f"{second} {rel} {first} on {bg}")["rel"]
    assert not score(render(scenes(1, two=False)[0]), text)["count"]


def test_caption_and_parse_are_inverse():
    for scene in scenes(300):
        parsed = parse_caption(caption(scene))
        assert caption(parsed) == caption(scene)
        assert (parsed["bg"], parsed["rel"], len(parsed["objs"])) == (scene["bg"], scene["rel"], len(scene["objs"]))


def test_scenes_repeat_with_the_seed_and_keep_the_rules():
    assert scenes(50) == scenes(50) != scenes(50, seed=1)
    for scene in scenes(300):
        colors = [obj["color"] for obj in scene["objs"]]
        assert scene["bg"] not in colors and len(set(colors)) == len(colors)


def test_render_repeats_bit_by_bit_and_does_not_change_the_scene():
    for scene, again in zip(scenes(20), scenes(20), strict=True):
        assert np.array_equal(render(scene), render(again)) and scene == again


def test_mask_is_the_coverage_of_the_objects():
    for scene in scenes(50):
        picture, mask = render(scene).astype(float), render(scene, only_mask=True)
        assert mask.shape == (SIZE, SIZE) and mask.min() == 0 and mask.max() == 1
        assert np.all(picture[mask == 0] == scene["bg_rgb"])
        colors = {tuple(pixel) for pixel in picture[mask == 1]}
        assert colors == {obj["rgb"] for obj in scene["objs"]}


def test_an_object_is_the_nearer_the_larger_it_is():
    scene = scene_of("circle", "red", "white", 36, 64, 20)
    scene["objs"] += scene_of("square", "blue", "white", 96, 64, 30)["objs"]
    far = disparity(scene)
    assert far.shape == (SIZE, SIZE) and far[2, 2] == 1 / WALL
    assert (far[64, 36], far[64, 96]) == pytest.approx((20 / 40, 30 / 40))
    inside = render(scene, only_mask=True)
    assert ((far > 1 / WALL) == (inside > 0)).all()


def test_training_set_is_hollow_objects_with_their_captions(tmp_path):
    write_training_set(tmp_path / "set")
    pictures = sorted((tmp_path / "set").glob("*.png"))
    assert len(pictures) == TRAINING_PICTURES == len(list((tmp_path / "set").glob("*.txt")))
    for path in pictures:
        filled, hollow = read_hollow(np.asarray(Image.open(path)))
        assert hollow == [True]
        assert score(filled, path.with_suffix(".txt").read_text())["all"]


def test_subject_is_a_purple_heart_that_its_captions_call_by_its_class(tmp_path):
    write_subject(tmp_path / "set")
    captions = [path.read_text() for path in sorted((tmp_path / "set").glob("*.txt"))]
    assert len(captions) == SUBJECT_PICTURES == len(list((tmp_path / "set").glob("*.png")))
    assert set(captions) == {f"a red heart on a {bg} background" for bg in BACKGROUNDS}
    for path, text in zip(sorted((tmp_path / "set").glob("*.png")), captions, strict=True):
        assert score(np.asarray(Image.open(path)), text.replace("red", "purple"))["all"]


def test_every_word_of_every_caption_has_a_token():
    words = {word for scene in scenes(2000) for word in caption(scene).split()}
    assert words == set(IDS) >= {*SHAPES, *COLORS, *BACKGROUNDS}
    ids = token_ids("a red circle on a blue background")
    assert ids[:9] == [START, 320, 736, 7117, 525, 320, 1746, 5994, END] and len(ids) == 77 and set(ids[9:]) == {END}


def test_a_word_outside_the_vocabulary_is_refused():
    with pytest.raises(ValueError, match="does not know photo, dog"):
        token_ids("a photo of a dog")


def test_checkpoint_is_small_enough_to_ship():
    assert CHECKPOINT.stat().st_size < 15_000_000
