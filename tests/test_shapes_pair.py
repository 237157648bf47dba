"""What is true of a shapes picture, by which the CLIP pair is trained."""

import random

import pytest
import torch
from steer.lab.world.data import caption, sample_scene, scene_of
from steer.lab.world.pair_texts import NAMED, TOKENS, Text, draw, fields, rows, scene_fields, truth, variants

RED, BLUE = ("red", "circle"), ("blue", "star")


def scene_of_two(rel="left of"):
    scene = scene_of("circle", "red", "white", 30, 64, 20)
    scene["objs"] += scene_of("star", "blue", "white", 96, 64, 20)["objs"]
    return scene | {"rel": rel}


def judged(scene, text, certain=(True, True), possible=(True, True)):
    there = torch.arange(2) < len(scene["objs"])
    seen = {"certain": torch.tensor([certain]) & there, "possible": torch.tensor([possible]) & there}
    true, may = truth(scene_fields([scene]), seen, fields([text]))
    return {(True, True): True, (False, False): False, (False, True): None}[true.item(), may.item()]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (Text((RED,)), True),
        (Text((BLUE,)), True),
        (Text(((None, "star"),)), True),
        (Text((("blue", "circle"),)), False),
        (Text(bg="white"), True),
        (Text(bg="black"), False),
        (Text((RED, BLUE), "left of"), True),
        (Text((BLUE, RED), "left of"), False),
        (Text((RED, BLUE), "above"), None),  # it may be so as well
        (Text((RED, BLUE), "left of", "white"), True),
        (Text((RED, BLUE), "left of", "black"), False),
        (Text((RED,), bg="white"), None),  # true, but not all of it
        (Text((RED,), bg="black"), False),
    ],
)
def test_two_objects(text, answer):
    assert judged(scene_of_two(), text) is answer


def test_what_is_cut_off_is_undecided_and_what_is_outside_is_not_there():
    scene = scene_of_two()
    assert judged(scene, Text((BLUE,)), certain=(True, False)) is None
    assert judged(scene, Text((RED,)), certain=(True, False)) is True
    assert judged(scene, Text((BLUE,)), certain=(True, False), possible=(True, False)) is False
    assert judged(scene, Text((RED,), bg="white"), certain=(True, False), possible=(True, False)) is True


def test_every_variant_is_true():
    rng = random.Random(0)
    for scene in [sample_scene(rng) for _ in range(200)]:
        texts = [text for kind in variants(scene).values() for text in kind]
        assert all(judged(scene, text) for text in [*texts, draw(scene, rng)])
        assert str(variants(scene)["whole"][0]) == caption(scene)


def test_one_name_is_true_of_one_object():
    scene = scene_of("heart", "pink", "gray")
    assert [str(text) for text in NAMED if judged(scene, text)] == ["a pink heart"]


def test_longest_caption_fits():
    ids, length = rows(Text((RED, BLUE), "left of", "white"))
    assert len(ids) == TOKENS and length == 14
