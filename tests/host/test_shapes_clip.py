"""The shapes CLIP pair: through the stock loaders, right about pictures, and nothing else changed by its loader."""

import importlib.util
import random
import sys

import comfy.clip_vision
import comfy.sd
import pytest
import torch
from steer.lab import models
from steer.lab.models import stock
from steer.lab.models.clip import loader
from steer.lab.models.clip.pictures import renders
from steer.lab.world.data import sample_scene
from steer.lab.world.pair_texts import NAMED

LOADERS = [(comfy.sd, "load_text_encoder_state_dicts"), (comfy.clip_vision, "load_clipvision_from_sd")]


@pytest.fixture(scope="module")
def pair():
    with torch.inference_mode():
        return stock.load_clip_pair()


def loaded_as(name):
    """The pack under another name, as the host loads it from `custom_nodes`."""
    spec = importlib.util.spec_from_file_location(name, models.__file__, submodule_search_locations=models.__path__)
    pack = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pack)
    return pack


def read(clip, text):
    return clip.encode_from_tokens(clip.tokenize(text), return_pooled=True)[1]


def see(vision, scenes):
    return vision.encode_image(renders(scenes).movedim(1, -1).float() / 255)["image_embeds"]


def test_towers_are_in_one_space(pair):
    clip, vision = pair
    scene = sample_scene(random.Random(0), two=False)
    assert read(clip, "a red circle").shape == see(vision, [scene]).shape == (1, loader.JOINT)


def test_text_is_projected(pair):
    clip, _ = pair
    tokens = clip.tokenize("a red circle")
    unprojected = clip.encode_from_tokens(tokens, return_pooled="unprojected")[1]
    projection = clip.cond_stage_model.clip_l.transformer.text_projection.weight.float().cpu()
    torch.testing.assert_close(read(clip, "a red circle"), unprojected @ projection.T, rtol=1e-3, atol=1e-3)


def test_names_what_it_sees(pair):
    clip, vision = pair
    rng = random.Random(2026)
    scenes = [sample_scene(rng, two=False) for _ in range(64)]
    texts = torch.cat([read(clip, str(text)) for text in NAMED])
    cosine = torch.nn.functional.normalize(see(vision, scenes)) @ torch.nn.functional.normalize(texts).T
    wanted = [f"a {scene['objs'][0]['color']} {scene['objs'][0]['shape']}" for scene in scenes]
    right = [str(NAMED[best]) == text for best, text in zip(cosine.argmax(1).tolist(), wanted, strict=True)]
    assert sum(right) / len(right) > 0.95


def test_whole_captions_are_told_apart_from_false_ones(pair):
    clip, vision = pair
    rng = random.Random(7)
    scenes = [sample_scene(rng, two=False) for _ in range(32)]
    pictures = torch.nn.functional.normalize(see(vision, scenes))
    for scene, picture in zip(scenes, pictures, strict=True):
        obj = scene["objs"][0]
        other = "star" if obj["shape"] != "star" else "circle"
        true, false = (f"a {obj['color']} {shape} on a {scene['bg']} background" for shape in (obj["shape"], other))
        cosines = [torch.cosine_similarity(picture, read(clip, text)[0], dim=0) for text in (true, false)]
        assert cosines[0] > cosines[1], true


@pytest.mark.parametrize(("module", "name"), LOADERS)
def test_registering_again_changes_nothing(module, name):
    before = getattr(module, name)
    models.register()
    loaded_as("another_name").register()
    assert getattr(module, name) is before


@pytest.mark.parametrize(
    "state",
    [
        {"text_model.embeddings.position_embedding.weight": torch.zeros(77, 768)},
        {"text_model.embeddings.position_embedding.weight": torch.zeros(248, 64)},
        {"visual_projection.weight": torch.zeros(768, 1024)},
        {},
    ],
)
def test_other_files_go_on_as_they_came(monkeypatch, state):
    def host(state_dicts=(), embedding_directory=None, clip_type=None, model_options=None):
        return state_dicts, embedding_directory, clip_type, model_options

    def host_vision(sd, prefix="", convert_keys=False):
        return sd, prefix, convert_keys

    for (module, name), stand_in in zip(LOADERS, (host, host_vision), strict=True):
        monkeypatch.setattr(module, name, stand_in)
    loader.register()
    states, options = [state], {"dtype": torch.float16}
    got = comfy.sd.load_text_encoder_state_dicts(states, "here", clip_type=1, model_options=options)
    assert got[0] is states and got[1:3] == ("here", 1) and got[3] is options
    got = comfy.clip_vision.load_clipvision_from_sd(state, "visual.", convert_keys=True)
    assert got[0] is state and got[1:] == ("visual.", True)
    two = [{loader.TEXT_MARK[0]: torch.zeros(loader.TEXT_MARK[1])}, {}]
    assert comfy.sd.load_text_encoder_state_dicts(two, model_options=options)[3] is options


def test_incomplete_vision_tower_is_named():
    state = {loader.VISION_MARK[0]: torch.zeros(loader.VISION_MARK[1])}
    with pytest.raises(ValueError, match="lacks vision_model.*train it again"):
        comfy.clip_vision.load_clipvision_from_sd(state)
