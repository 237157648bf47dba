import random

import comfy.model_management as management
import comfy.sampler_helpers
import comfy.samplers
import node_helpers
import nodes
import numpy as np
import pytest
import torch
from steer.lab.comfy.random_models import tiny_sdxl
from steer.lab.comfy.runs import counted, encode, host_guider, interrupted, noise_of, run, sigmas_of
from steer.lab.world.data import caption, render, sample_scene, scene_of
from steer.lab.world.metrics import iou
from steer.nodes.diffedit import SteerDiffEditMask
from steer.tests import checks, oracles
from steer.tests.host_models import (
    EPS,
    FLOW,
    V,
    for_shape,
    free_memory,
    mean_conditioning,
    relative,
    split_rows,
    with_control,
    with_law,
    with_lora,
)

SCENES = [scene_of("heart", "red", "blue", 50, 60, 30), scene_of("star", "yellow", "black", 80, 70, 26)]
EDITED = ["a green heart on a blue background", "a red star on a black background"]


def mask_of(model, source, target, latent, strength=0.5, samples=10, threshold=0.5, seed=0):
    """(mask, heatmap, report)."""
    latent = latent if isinstance(latent, dict) else {"samples": latent}
    output = SteerDiffEditMask.execute(model, source, target, latent, strength, samples, threshold, seed)
    return *output.args, output.ui["text"][0]


def texts(clip, captions):
    return [[torch.cat([encode(clip, each)[0][0] for each in captions]), {}]]


@pytest.fixture
def pictures(shapes):
    pixels = torch.stack([torch.from_numpy(render(scene).copy()) for scene in SCENES]).float() / 255
    return shapes[2].encode(pixels)


@pytest.fixture
def prompts(shapes):
    return texts(shapes[1], map(caption, SCENES)), texts(shapes[1], EDITED)


def planted(model, law, where):
    """A clone whose estimate is x / (1 + sigma) and, inside the region, the conditioning's mean on top."""
    model = with_law(model, law)

    def wrapper(apply_model, args):
        x, sigma = args["input"], args["timestep"].reshape(-1, *[1] * (args["input"].ndim - 1))
        mean = args["c"]["c_crossattn"].to(x.device).mean((1, 2)).reshape(sigma.shape)
        return x / (1 + sigma) + mean * where.to(x.device).repeat(len(x) // len(where), *[1] * (x.ndim - 1))

    model.set_model_unet_function_wrapper(wrapper)
    return model


@pytest.mark.parametrize("law", [EPS, V, FLOW])
@pytest.mark.parametrize("shape", [(1, 4, 16, 16), (3, 4, 12, 20), (1, 4, 3, 16, 16)])
def test_a_planted_region_is_recovered_at_the_pictures_size(shapes, monkeypatch, law, shape):
    where = torch.zeros(shape[0], 1, *shape[2:])
    for item in range(shape[0]):
        where[item, ..., 2 : 6 + item, 3:9] = 1
    model = for_shape(monkeypatch, planted(shapes[0], law, where), shape)
    mask, heatmap, text = mask_of(model, mean_conditioning(0), mean_conditioning(2), noise_of(shape, 1))
    expected = where.flatten(0, -3)
    assert torch.equal(mask, expected.repeat_interleave(8, -2).repeat_interleave(8, -1))
    assert heatmap.shape == (*mask.shape, 3) and 0 <= heatmap.min() and heatmap.max() <= 1
    assert heatmap[mask > 0].mean() > heatmap[mask == 0].mean() + 0.2
    # and back in the latent it is the same, not a blurred one
    latent = nodes.SetLatentNoiseMask().set_mask({"samples": noise_of(shape)}, mask)[0]
    back = comfy.sampler_helpers.prepare_mask(latent["noise_mask"], shape, torch.device("cpu"))
    assert torch.equal(back[:, :1].flatten(0, -3), expected)


def test_real_prompts_find_the_object(shapes):
    """The colours of eight objects: IoU with the object's own pixels, at default settings."""
    values = []
    for index in range(8):
        scene = sample_scene(random.Random(700 + index), two=False)
        after = {
            **scene,
            "objs": [{**scene["objs"][0], "color": "red" if scene["objs"][0]["color"] != "red" else "pink"}],
        }
        latent = shapes[2].encode(torch.from_numpy(render(scene).copy())[None].float() / 255)
        mask, _, text = mask_of(shapes[0], *(encode(shapes[1], caption(each)) for each in (scene, after)), latent)
        values.append(iou(mask[0].numpy(), render(scene, only_mask=True) > 0.5))
        assert f"{100 * float(mask.mean()):.0f}%" in text
    assert np.mean(values) > 0.5


def test_calls_batch_singles_and_seeds(shapes, pictures, prompts):
    model, rows = counted(shapes[0])
    together = mask_of(model, *prompts, pictures, samples=6)
    assert rows == [2 * 6 * 2]
    assert all(map(torch.equal, together[:2], mask_of(model, *prompts, pictures, samples=6)[:2]))
    assert not torch.equal(together[1], mask_of(model, *prompts, pictures, samples=6, seed=1)[1])
    for item in range(2):
        alone = mask_of(
            model, *([[each[0][0][item : item + 1], {}]] for each in prompts), pictures[item : item + 1], samples=6
        )
        assert torch.equal(alone[0][0], together[0][item])
        torch.testing.assert_close(alone[1][0], together[1][item], rtol=0, atol=1e-4)
    assert together[2].count("\n") == 1 and "picture 2" in together[2]


def test_without_memory_the_draws_go_one_by_one(shapes, pictures, prompts, monkeypatch):
    model, rows = counted(shapes[0])
    at_once = mask_of(model, *prompts, pictures)
    split_rows(monkeypatch, model, True)
    one_by_one = mask_of(model, *prompts, pictures)
    assert rows == [2 * 10 * 2] + [2] * 20
    assert torch.equal(at_once[0], one_by_one[0])
    torch.testing.assert_close(at_once[1], one_by_one[1], rtol=0, atol=1e-4)
    free = 2.0**40
    monkeypatch.setattr(management, "get_free_memory", free_memory(lambda: free))
    monkeypatch.setattr(model.model, "memory_required", lambda shape, **_: shape[0] / 14 * free / 1.5)
    assert torch.equal(at_once[0], mask_of(model, *prompts, pictures)[0])
    assert rows[21:] == [2 * 3 * 2] * 3 + [2 * 2]


@pytest.mark.parametrize("target", ["a cat on a blue background", "a dog on a blue background", "almost"])
def test_equal_prompts_give_an_empty_mask_and_a_warning(shapes, pictures, target, caplog):
    """The model knows neither animal, so that both read the same to it; "almost" differs by a rounding error."""
    model, rows = counted(shapes[0])
    source = encode(shapes[1], "a cat on a blue background")
    other = [[source[0][0] * (1 + 1e-7), {}]] if target == "almost" else encode(shapes[1], target)
    mask, heatmap, text = mask_of(model, source, other, pictures)
    assert not mask.any() and mask.shape == (2, 128, 128) and torch.isfinite(heatmap).all()
    assert "empty" in text and "the same to the model" in text
    assert "SteerDiffEditMask" in caplog.text and caplog.records[-1].levelname == "WARNING"
    assert bool(rows) == (target == "almost")


def test_a_threshold_that_nothing_reaches_is_said(shapes, pictures, prompts, caplog):
    mask, _, text = mask_of(shapes[0], *prompts, pictures, threshold=1.0)
    assert not mask.any() and "lower the threshold" in text and caplog.records[-1].levelname == "WARNING"
    mask, _, text = mask_of(shapes[0], *prompts, pictures, threshold=0.0)
    assert mask.all() and "raise the threshold" in text


def test_a_noise_mask_limits_the_search(shapes, pictures, prompts):
    within = torch.zeros(1, 1, 128, 128)
    within[..., :64] = 1
    mask, heatmap, _ = mask_of(shapes[0], *prompts, {"samples": pictures, "noise_mask": within})
    free = mask_of(shapes[0], *prompts, pictures)[0]
    assert free[0, :, 64:].any() and not mask[..., 64:].any() and mask[0, :, :64].any()
    assert heatmap[..., 72:, :].max() < 0.1


def test_lora_and_control_act(shapes, pictures, prompts):
    plain = mask_of(shapes[0], *prompts, pictures)[1]
    controlled = [with_control(each) for each in prompts]
    for model, given in ((with_lora(shapes[0]), prompts), (shapes[0], controlled)):
        mask, heatmap, _ = mask_of(model, *given, pictures)
        assert not torch.equal(heatmap, plain) and mask.any() and not mask.all()
    assert torch.equal(mask_of(shapes[0], *prompts, pictures)[1], plain)


def test_sdxl(shapes):
    def prompt(seed):
        pooled = {"pooled_output": noise_of((1, 1280), seed)}
        return [[noise_of((1, 77, 128), seed), pooled]]

    mask, heatmap, _ = mask_of(tiny_sdxl(), prompt(1), prompt(2), noise_of((2, 4, 16, 16)), threshold=0.3)
    assert mask.shape == (2, 128, 128) and 0 < mask.mean() < 1
    again = mask_of(
        tiny_sdxl(), prompt(1), [[noise_of((1, 77, 128), 1), {**prompt(2)[0][1]}]], noise_of((2, 4, 16, 16))
    )
    assert again[1].any()  # the pooled text alone differs


class TestRefused:
    def refused(self, shapes, message, latent=None, source=None, model=None, **settings):
        model, rows = counted(model or shapes[0])
        target = encode(shapes[1], "a green heart on a blue background")
        latent = noise_of((1, 4, 16, 16)) if latent is None else latent
        with pytest.raises(ValueError, match=f"SteerDiffEditMask: .*{message}"):
            mask_of(model, source or encode(shapes[1], "a heart"), target, latent, **settings)
        assert not rows

    def test_numbers(self, shapes):
        self.refused(shapes, "strength is 1.2", strength=1.2)
        self.refused(shapes, "strength is 0", strength=0.0)
        self.refused(shapes, "samples is 0", samples=0)
        self.refused(shapes, "threshold is nan", threshold=float("nan"))
        self.refused(shapes, "seed is -1", seed=-1)

    def test_latents(self, shapes):
        self.refused(shapes, "empty", latent=torch.zeros(1, 4, 16, 16))
        self.refused(shapes, "16 channels.*works on 4", latent=torch.ones(1, 16, 16, 16))
        self.refused(shapes, "NaN", latent=torch.full((1, 4, 16, 16), float("nan")))
        self.refused(shapes, "1 dimensions", latent=torch.ones(1, 4, 16))

    def test_noise_masks(self, shapes):
        def masked(mask):
            return {"samples": noise_of((1, 4, 16, 16)), "noise_mask": mask}

        self.refused(shapes, "another aspect", latent=masked(torch.ones(1, 1, 64, 128)))

    def test_a_prompt_that_is_not_active_at_this_level(self, shapes):
        timed = node_helpers.conditioning_set_values(
            encode(shapes[1], "a heart"), {"start_percent": 0.7, "end_percent": 1.0}
        )
        self.refused(shapes, "source is limited to a part of the run", source=timed)
        mask_of(shapes[0], timed, encode(shapes[1], "a star"), noise_of((1, 4, 16, 16)), strength=0.2)


def test_interrupt_leaves_the_model_as_it_was(shapes, pictures, prompts, monkeypatch):
    guider, sigmas, noise = host_guider(shapes[0], *prompts, 3.0), sigmas_of(shapes[0], 4), noise_of((2, 4, 16, 16))
    before = run(guider, comfy.samplers.sampler_object("euler"), sigmas, noise)
    model, rows = interrupted(shapes[0], 4)  # the second noise's other text: older hosts do not look before it
    split_rows(monkeypatch, model, True)
    with pytest.raises(management.InterruptProcessingException):
        mask_of(model, *prompts, pictures)
    assert len(rows) == 4
    monkeypatch.undo()
    assert relative(run(guider, comfy.samplers.sampler_object("euler"), sigmas, noise), before) == 0.0
    assert not shapes[0].object_patches


def on_family(family):
    texts = [family.prompt(text) for text in (oracles.SOURCE, oracles.SOURCE, "a dog")]

    def found(other):
        return SteerDiffEditMask.execute(
            family.model(), texts[0], other, {"samples": family.picture()}, 0.3, 4, 0.4, 0
        ).args

    assert not found(texts[1])[0].any()
    mask, heat = found(texts[2])
    frames = family.shape[2] if len(family.shape) == 5 else 1
    assert mask.shape == (frames, 64, 64) and heat.shape == (frames, 64, 64, 3)
    assert set(mask.unique().tolist()) == {0.0, 1.0}


def check_diffedit(world, given, run, output):
    mask, heat = output
    samples = given["latent_image"]["samples"]
    height, width = (8 * side for side in samples.shape[-2:])
    checks.check_mask(mask, height, width)
    assert set(mask.unique().tolist()) <= {0.0, 1.0}
    checks.check_picture(heat, len(mask), height, width)


ORACLE = {
    "SteerDiffEditMask": (
        "prompts alike: nothing; unlike: part of the picture, where the estimates differ most",
        on_family,
    ),
}
CHECK = {
    "SteerDiffEditMask": (check_diffedit, ()),
}
USUAL = {
    "SteerDiffEditMask": {"samples": (1, 2)},
}
