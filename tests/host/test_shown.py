"""What nodes show of themselves in the editor, and what they refuse before a run."""

import numpy as np
import pytest
import torch
from comfy.latent_formats import SD15, SDXL
from hypothesis import given, settings
from hypothesis import strategies as st
from latent_preview import Latent2RGBPreviewer
from steer.attention.paint_with_words import Region
from steer.lab.comfy.runs import noise_of
from steer.lab.comfy.server import HostError
from steer.nodes import METHODS
from steer.nodes.attention_maps import report
from steer.nodes.host.progress import latent_picture
from steer.nodes.paint_with_words import SteerRegion, SteerRegionsFromSegmentation
from steer.nodes.schema import PICTURES
from steer.pictures.maps import COLOURS, LINE, PAPER, outlined, regions_picture

LEFT = torch.zeros(1, 64, 96)
LEFT[..., :40] = 1.0


def test_outside_its_mask_a_picture_is_dark_and_a_line_goes_round_the_inside():
    picture = torch.rand(1, 64, 96, 3)
    drawn = outlined(picture, LEFT)
    assert torch.equal(drawn[:, :, :40], picture[:, :, :40])
    torch.testing.assert_close(drawn[:, :, 40], LINE.expand(1, 64, 3))
    torch.testing.assert_close(drawn[:, :, 41:], 0.35 * picture[:, :, 41:])
    torch.testing.assert_close(outlined(picture, torch.ones_like(LEFT)), picture)


@pytest.mark.parametrize("kind", [SD15, SDXL])
def test_latents_are_shown_as_the_hosts_previews_show_them(kind):
    latent_format, latents = kind(), noise_of((2, 4, 16, 24))
    hosts = Latent2RGBPreviewer(latent_format.latent_rgb_factors, latent_format.latent_rgb_factors_bias)
    for each, picture in zip(latents, latent_picture(latent_format, latents, (16, 24)), strict=True):
        seen = torch.from_numpy(np.array(hosts.decode_latent_to_preview(each[None]))) / 255
        assert (seen - picture).abs().max() < 2 / 255
    assert latent_picture(latent_format, latents, (128, 192)).shape == (2, 128, 192, 3)
    latent_format.latent_rgb_factors = None
    assert latent_picture(latent_format, latents, (16, 24)) is None


def test_a_map_has_its_regions_in_their_colours_with_their_phrases():
    (drawn,) = regions_picture((Region(LEFT, "cat"), Region(1.0 - LEFT[0], "sky", 0.5)))
    assert drawn.shape == (341, 512, 3)
    for region, columns in enumerate((slice(0, 210), slice(216, 512))):
        top, middle = drawn[:100, columns], drawn[150:190, columns]
        torch.testing.assert_close(top, COLOURS[region].expand_as(top), atol=3e-3, rtol=0)
        assert (middle > 0.99).all(-1).any(), "the phrase is written in the middle of its region"
    (empty,) = regions_picture((Region(0.0 * LEFT, "cat"),))
    assert (empty - PAPER).abs().max() < 3e-3
    assert len(regions_picture((Region(LEFT, "cat"), Region(LEFT.expand(3, -1, -1), "sky")))) == 3


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.text(min_size=1).filter(str.strip))
def test_any_region_can_be_drawn(height, width, phrase):
    assert len(regions_picture((Region(torch.ones(height, width), phrase),))) == 1


def test_regions_say_how_large_they_are_and_what_is_amiss():
    told = SteerRegion.execute(LEFT, "cat", 1.0).ui
    assert told["text"] == ("cat 42% of the picture",) and not told["steer_warning"] and len(told["images"]) == 1
    told = SteerRegion.execute(0.0 * LEFT, "cat", 1.0, (Region(LEFT, "sky"),)).ui
    assert told["text"][0].startswith("the mask of 'cat' is empty") and "sky 42%, cat 0%" in told["text"][0]
    assert len(told["steer_warning"]) == 1
    image = torch.cat([LEFT, torch.zeros(2, 64, 96)])[None].movedim(1, -1)
    told = SteerRegionsFromSegmentation.execute(image, "#ff0000: cat\n#00ff00: sky").ui
    assert "no #00ff00" in told["steer_warning"][0] and told["text"][0].endswith("cat 42%, sky 0% of the picture")


def test_not_more_pictures_are_shown_than_can_be_looked_at():
    assert len(SteerRegion.execute(LEFT.expand(PICTURES + 5, -1, -1), "cat", 1.0).ui["images"]) == PICTURES
    assert len(latent_picture(SD15(), noise_of((1, 4, PICTURES + 5, 8, 8)), (16, 16))) == PICTURES  # frames


def test_the_heat_of_words_is_told_by_picture():
    heats = torch.stack([torch.stack([LEFT[0], 0.0 * LEFT[0]]), torch.stack([LEFT[0], 1.0 - LEFT[0]])])
    assert report(["cat", "red hat"], [1, 2], heats[:1]) == (
        "cat 42%, red hat nowhere of the picture (where a word's heat is above half of its highest)\n\n"
        "tokens: cat 1, red hat 2"
    )
    assert "picture 2: cat 42%, red hat 58%" in report(["cat", "red hat"], [1, 2], heats)


# through the server


def seen(node):
    """An output node of the host for anything."""
    return {"class_type": "PreviewAny", "inputs": {"source": [node, 0]}}


CLIP = {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "shapes.safetensors"}}
MASK = {"class_type": "SolidMask", "inputs": {"value": 1.0, "width": 64, "height": 64}}
EDIT = {
    "class_type": "SteerPromptEdit",
    "inputs": {"clip": ["model", 1], "source": "a red heart", "target": "a big blue heart", "mapping": "auto",
               "equalizer": ""},
}  # fmt: skip
REGION = {"class_type": "SteerRegion", "inputs": {"mask": ["mask", 0], "phrase": "cat", "strength": 1.0}}
BLEND = {
    "class_type": "SteerLocalBlend",
    "inputs": {"edit": ["edit", 2], "source_words": "red", "target_words": "blue", "threshold": 0.3},
}
LEGEND = {"class_type": "SteerRegionsFromSegmentation", "inputs": {"image": ["image", 0], "legend": "#ff0000: cat"}}
IMAGE = {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 0xFF0000}}
SIGMAS = {
    "class_type": "SteerSDEditSigmas",
    "inputs": {"model": ["model", 0], "scheduler": "normal", "steps": 4, "strength": 0.5},
}
GUIDER = {
    "class_type": "SteerCFGGuider",
    "inputs": {"model": ["model", 0], "positive": ["edit", 0], "negative": ["edit", 1], "cfg": 3.0,
               "start_percent": 0.0, "end_percent": 1.0, "negative_scale": 1.0},
}  # fmt: skip
TEXT = {"class_type": "PrimitiveString", "inputs": {"value": ""}}


def graph(*shown, **changes):
    """A prompt that runs these nodes; `changes` replace inputs, given as node__input."""
    nodes = {"model": CLIP, "mask": MASK, "image": IMAGE, "text": TEXT, "edit": EDIT, "region": REGION, "blend": BLEND,
             "legend": LEGEND, "sigmas": SIGMAS, "guider": GUIDER}  # fmt: skip
    nodes = {key: {**node, "inputs": dict(node["inputs"])} for key, node in nodes.items()}
    for place, value in changes.items():
        node, name = place.split("__")
        nodes[node]["inputs"][name] = value
    return nodes | {f"seen {key}": seen(key) for key in shown}


def test_texts_and_pictures_are_among_the_outputs(server):
    outputs = server.run(graph("edit", "region", "legend"))
    assert outputs["edit"]["text"][0].startswith("auto: refine  + big, + blue, - red")
    assert outputs["region"]["text"] == outputs["legend"]["text"] == ["cat 100% of the picture"]
    for node in ("region", "legend"):
        (where,) = outputs[node]["images"]
        assert where["type"] == "temp" and server.image(**where).size == (512, 512)
    assert not server.images(outputs), "nothing is saved"


@pytest.mark.parametrize(
    "node, changes, message",
    [
        ("edit", {"edit__equalizer": "blue 2"}, "equalizer: 'blue 2' has no colon"),
        ("edit", {"edit__equalizer": ": 2"}, "equalizer: ': 2' names no word"),
        ("edit", {"edit__word_windows": "blue: 0.6-0.2"}, "word_windows: '0.6-0.2' for 'blue' is not a window"),
        ("region", {"region__phrase": " "}, "phrase is empty"),
        ("blend", {"blend__target_words": " ,"}, "target_words is empty"),
        ("legend", {"legend__legend": "red cat"}, "legend, line 1"),
        ("sigmas", {"sigmas__strength": 0.0}, "strength is 0"),
        ("guider", {"guider__start_percent": 0.5, "guider__end_percent": 0.5}, "start_percent 0.5 is not before"),
        ("guider", {"guider__end_percent": 1.5}, "end_percent is 1.5"),
    ],
)
def test_what_needs_no_model_is_refused_before_the_run(server, node, changes, message):
    """Said of the input itself, which the editor marks; the same message comes in the run, over a wire."""
    with pytest.raises(HostError) as caught:
        server.run(graph(node, **changes))
    assert list(caught.value.node_errors) == [node]
    errors = caught.value.node_errors[node]["errors"]
    marked = {error["extra_info"]["input_name"] for error in errors}
    assert {place.split("__")[1] for place in changes} <= marked
    assert all(error["type"] == "custom_validation_failed" and message in error["details"] for error in errors)


@pytest.mark.parametrize(
    "node, changes, message",
    [
        ("edit", {"edit__equalizer": ["text", 0], "text__value": "blue 2"}, "SteerPromptEdit: equalizer: 'blue 2' has"),
        ("region", {"region__phrase": ["text", 0]}, "SteerRegion: phrase is empty"),
        ("blend", {"blend__source_words": ["text", 0]}, "source_words is empty; name at least one of: a, red, heart"),
        ("edit", {"edit__equalizer": "blux: 2"}, "'blux' is not in .*; did you mean 'blue'. its words are: a, big"),
    ],
)
def test_what_comes_over_a_wire_or_needs_the_model_is_refused_in_the_run(server, node, changes, message):
    with pytest.raises(HostError, match=message) as caught:
        server.run(graph(node, **changes))
    assert caught.value.node_id == node and not caught.value.node_errors


def test_what_is_checked_before_the_run_is_an_input_by_its_name():
    """The host gives a node's check the inputs that it names, and none under another name."""
    from inspect import signature

    for node in (node for method in METHODS for node in method.NODES):
        if "validate_inputs" in vars(node):
            names = [item.id for item in node.GET_SCHEMA().inputs]
            assert set(signature(node.validate_inputs).parameters) <= set(names), node


def test_inputs_that_few_people_turn_are_folded():
    folded = {
        f"{node.GET_SCHEMA().node_id}.{name}"
        for node in (node for method in METHODS for node in method.NODES)
        for kind in ("required", "optional")
        for name, (_, *options) in node.INPUT_TYPES().get(kind, {}).items()
        if options and options[0].get("advanced")
    }
    assert folded == {
        "SteerPromptEdit.word_windows", "SteerLocalBlend.start_percent", "SteerCFGGuider.negative_scale",
        "SteerGradientGuider.start_percent", "SteerGradientGuider.end_percent", "SteerGradientGuider.max_change",
        "SteerDDIMInversion.tolerance", "SteerDDIMInversion.check", "SteerNullText.learning_rate",
        "SteerNullText.early_stop", "SteerCaptureAttention.cross_end", "SteerCaptureAttention.self_end",
        "SteerRePaintSampler.eta", "SteerCLIPTextLoss.smallest_cutout", "SteerCLIPImageLoss.smallest_cutout",
        "SteerReconstructLatent.learning_rate", "SteerReconstructDecoder.learning_rate",
        "SteerDirectEditSampler.pull", "SteerDirectEditSampler.average", "SteerGradientGuider.iterations",
        "SteerResizeOperator.width", "SteerResizeOperator.height", "SteerBlurOperator.motion",
        "SteerBlurOperator.angle", "SteerCropOperator.width", "SteerCropOperator.height",
        "SteerPaletteLoss.directions", "SteerStyleLoss.smallest_cutout", "SteerCLIPDirectionLoss.smallest_cutout",
        "SteerDepthLoss.resolution", "SteerFitLoRA.cfg",
    }  # fmt: skip
