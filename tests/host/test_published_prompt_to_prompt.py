"""Ours against the published controller, which makes, keeps and overwrites every map, on the real host."""

import comfy.samplers
import pytest
import torch
from steer.bench import published_prompt_to_prompt
from steer.lab.comfy.runs import encode, noise_of, run, sigmas_of
from steer.nodes.prompt_to_prompt import SteerLocalBlend, SteerPromptEdit, SteerPromptToPromptGuider
from steer.tests.cases import in_pairs
from steer.tests.host_models import relative

RED, GREEN = "a red circle on a blue background", "a green circle on a blue background"
CHARTREUSE = "a chartreuse circle on a blue background"
STAR = "a red circle left of a blue star on a white background"
LONG = ", ".join([GREEN] * 20)
EULER, CFG = comfy.samplers.sampler_object("euler"), 5.0


def edit_of(clip, source, target, mapping="auto", equalizer="", windows="", blend=None):
    first, second, edit = SteerPromptEdit.execute(clip, source, target, mapping, equalizer, windows).args
    if blend:
        edit = SteerLocalBlend.execute(edit, *blend).args[0]
    return first, second, edit


def both(shapes, edit, ends=(0.8, 0.4), steps=6):
    """What ours and the published controller return."""
    model, clip, _ = shapes
    source, target, change = edit
    sigmas, noise, empty = sigmas_of(model, steps), noise_of((1, 4, 16, 16)), encode(clip, "")
    guider = SteerPromptToPromptGuider.execute(model, source, target, empty, CFG, change, *ends).args[0]
    published = published_prompt_to_prompt.sample(model, (source, target), empty, CFG, change, ends, sigmas, noise)
    return run(guider, EULER, sigmas, noise), published


@pytest.mark.parametrize(
    "change",
    [
        pytest.param((RED, GREEN), id="replace"),
        pytest.param((RED, CHARTREUSE), id="replace one token by several"),
        pytest.param((CHARTREUSE, RED), id="replace several tokens by one"),
        pytest.param((LONG, LONG.replace("green", "red")), id="replace, several chunks"),
        pytest.param((RED, STAR, "refine"), id="refine"),
        pytest.param((STAR, RED, "refine"), id="refine by leaving out"),
        pytest.param((RED, LONG, "refine"), id="refine, more chunks"),
        pytest.param((LONG, RED, "refine"), id="refine, fewer chunks"),
        pytest.param((RED, RED, "auto", "circle: 3, blue: -1"), id="reweight"),
        pytest.param((RED, GREEN, "replace", "green: 2, circle: 0"), id="replace and reweight"),
        pytest.param((RED, STAR, "refine", "star: 2, red: 0.5"), id="refine and reweight"),
        pytest.param((RED, GREEN, "replace", "", "green: 0.4, blue: 0.2-0.6"), id="windows of words"),
        pytest.param((RED, STAR, "refine", "star: 2", "star: 0.5, red: 0.1-0.9"), id="all together"),
    ],
)
def test_ours_is_the_published_edit(shapes, change):
    ours, published = both(shapes, edit_of(shapes[1], *change))
    assert relative(ours, published) < 1e-4
    assert relative(ours[1:], ours[:1]) > 0.01


@pytest.mark.parametrize("ends", [(1.0, 1.0), (0.3, 0.0), (0.0, 0.6)])
def test_the_ends_are_the_published_ones(shapes, ends):
    ours, published = both(shapes, edit_of(shapes[1], RED, GREEN), ends)
    assert relative(ours, published) < 1e-4


@pytest.mark.parametrize(
    "change, threshold, start",
    in_pairs([((RED, GREEN), ("circle", "circle")), ((RED, STAR), ("circle", "circle, star"))], [0.3, 0.5],
             [0.95, 0.2, 0.0]),
)  # fmt: skip
def test_the_local_blend_is_the_published_one(shapes, change, threshold, start):
    """Though it blends what the model sees and the published one the sampler's latent after each step."""
    prompts, words = change
    ours, published = both(shapes, edit_of(shapes[1], *prompts, blend=(*words, threshold, start)), steps=12)
    assert relative(ours, published) < 1e-4
    assert torch.equal(outside(ours), outside(published)) and outside(ours).any()


def outside(pair):
    """(height, width) where the edit is the source exactly."""
    return (pair[0] == pair[1]).all(0)
