import math

import numpy as np
import pytest
import torch
from steer.lab.world.data import SIZE, caption, render, scene_of
from steer.lab.world.metrics import aggregate, attributes, grown, iou, markdown_table, object_mask, psnr


def test_psnr_is_the_textbook_formula():
    a, b = np.zeros((4, 4, 3)), np.full((4, 4, 3), 0.1)
    assert psnr(a, b) == pytest.approx(20)
    assert psnr(torch.from_numpy(a), b) == psnr(a, b)
    assert psnr(a, a) == math.inf


def test_psnr_takes_bytes_and_floats_alike():
    a = render(scene_of("circle", "red", "blue"))
    assert psnr(a, a.astype(float) / 255) == math.inf


def test_psnr_counts_only_where_asked():
    a, b, where = np.zeros((4, 4, 3)), np.zeros((4, 4, 3)), np.zeros((4, 4))
    b[:2], where[:2] = 1.0, 1.0
    assert psnr(a, b, where) == 0 and psnr(a, b, 1 - where) == math.inf
    assert psnr(a, b) == pytest.approx(10 * math.log10(2))


def test_psnr_refuses_what_cannot_be_compared():
    a = np.zeros((4, 4, 3))
    with pytest.raises(ValueError, match="differ in shape"):
        psnr(a, np.zeros((4, 5, 3)))
    with pytest.raises(ValueError, match="something that counts"):
        psnr(a, a, np.zeros((4, 4)))


def test_iou():
    left, right = np.zeros((4, 4)), np.zeros((4, 4))
    left[:, :3], right[:, 1:] = 1, 1
    assert iou(left, right) == 0.5 and iou(left, left) == 1 and iou(left, 1 - left) == 0
    assert iou(left, 0.5 * left) == 0.5 and iou(0 * left, 0 * left) == 1
    with pytest.raises(ValueError, match="differ in shape"):
        iou(left, left[:2])


def test_attributes_of_a_whole_picture():
    scene = scene_of("heart", "pink", "gray")
    found = attributes(render(scene) / 255.0, caption(scene))
    assert found["all"] == found["bg"] == found["shape"] == 1.0 and found["iou"] > 0.9
    assert attributes(render(scene), "a red heart on a gray background")["color"] == 0.0


def test_attributes_inside_a_hole_do_not_see_the_rest():
    text, hole = "a green star on a blue background", np.zeros((SIZE, SIZE))
    hole[:, SIZE // 2 :] = 1
    picture = render(scene_of("star", "green", "blue", 96, 64, 24)).copy()
    picture[:, : SIZE // 2] = render(scene_of("circle", "red", "blue", 32, 64, 24))[:, : SIZE // 2]
    assert attributes(picture, text)["all"] == 0 and attributes(picture, text, hole)["all"] == 1
    assert attributes(picture, text, 1 - hole)["shape"] == 0
    assert attributes(picture, "a red circle on a blue background", 1 - hole)["all"] == 1


def test_aggregate_is_the_mean_where_there_is_one():
    assert aggregate([{"a": 1, "rel": True}, {"a": 0}]) == {"a": 0.5, "rel": 1.0}
    assert aggregate([]) == {}


def test_markdown_table():
    rows = [{"method": "repaint", "psnr": 33.21987}, {"method": "blended", "psnr": 7}]
    assert markdown_table(rows) == "| method | psnr |\n| --- | --- |\n| repaint | 33.22 |\n| blended | 7 |\n"
    with pytest.raises(ValueError, match="at least one row"):
        markdown_table([])


def test_the_object_is_what_the_scene_says():
    scene = scene_of("star", "yellow", "black", 80, 70, 26)
    assert iou(object_mask(render(scene)), render(scene, only_mask=True) > 0) > 0.95


def test_a_mask_grows_by_a_square_and_shrinks_as_its_outside_grows():
    mask = np.zeros((9, 9), bool)
    mask[4, 2] = True
    expected = np.zeros((9, 9), bool)
    expected[2:7, 0:5] = True
    assert (grown(mask, 2) == expected).all() and grown(mask, 2).dtype == bool
    assert (~grown(~expected, 2)).sum() == 3  # at the picture's edge there is no outside
