import random

import comfy.model_management as management
import comfy.samplers
import pytest
import torch
from steer.demo.shapes.data import caption, render, sample_scene
from steer.nodes.attention_maps import SteerCaptureAttention, SteerInjectAttention
from steer.nodes.inversion import SteerDDIMInversion
from steer.nodes.prompt_to_prompt import SteerLocalBlend, SteerPromptEdit, SteerPromptToPromptGuider
from steer.tests.host_run import counted, encode, host_guider, noise_of, relative, run, sigmas_of

RED, GREEN = "a red circle on a blue background", "a green circle on a blue background"
LONG = "a red circle left of a blue star on a white background"
EULER = comfy.samplers.sampler_object("euler")


class Noise:
    seed = 3

    def __init__(self, noise):
        self.noise = noise

    def generate_noise(self, latent):
        return self.noise


def edit_of(clip, source=RED, target=GREEN, mapping="auto", equalizer="", windows=""):
    return SteerPromptEdit.execute(clip, source, target, mapping, equalizer, windows).args


def lockstep(shapes, edit, cfg=5.0, cross_end=0.8, self_end=0.4, model=None, negative="", **also):
    source, target, change = edit
    return SteerPromptToPromptGuider.execute(
        model or shapes[0], source, target, encode(shapes[1], negative), cfg, change, cross_end, self_end, **also
    ).args[0]


def alone(shapes, text, noise, sigmas, cfg=5.0, sampler=EULER, model=None):
    return run(
        host_guider(model or shapes[0], encode(shapes[1], text), encode(shapes[1], ""), cfg), sampler, sigmas, noise
    )


def split_rows(monkeypatch, model, split):
    """Makes the host run conditionings one by one, or together."""
    monkeypatch.setattr(model.model, "memory_required", lambda *args, **kwargs: 1e30 if split else 1.0)


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "heun"])
def test_the_same_prompt_twice_is_plain_sampling(shapes, sampler):
    sampler, sigmas, noise = comfy.samplers.sampler_object(sampler), sigmas_of(shapes[0], 12), noise_of((1, 4, 16, 16))
    both = run(lockstep(shapes, edit_of(shapes[1], RED, RED)), sampler, sigmas, noise)
    plain = alone(shapes, RED, noise, sigmas, sampler=sampler)
    assert relative(both[:1], plain) < 1e-5 and relative(both[1:], plain) < 1e-5


def test_the_source_is_the_source_alone_whatever_the_edit(shapes):
    sigmas, noise = sigmas_of(shapes[0], 12), noise_of((1, 4, 16, 16))
    both = run(lockstep(shapes, edit_of(shapes[1]), cross_end=1.0, self_end=1.0), EULER, sigmas, noise)
    assert relative(both[:1], alone(shapes, RED, noise, sigmas)) < 1e-5
    assert relative(both[1:], alone(shapes, GREEN, noise, sigmas)) > 0.01


@pytest.mark.parametrize("target", [GREEN, LONG, ", ".join([GREEN] * 20)])
def test_gates_at_zero_are_two_independent_generations(shapes, target):
    sigmas, noise = sigmas_of(shapes[0], 12), noise_of((1, 4, 16, 16))
    both = run(lockstep(shapes, edit_of(shapes[1], RED, target), cross_end=0.0, self_end=0.0), EULER, sigmas, noise)
    assert relative(both[:1], alone(shapes, RED, noise, sigmas)) < 1e-5
    assert relative(both[1:], alone(shapes, target, noise, sigmas)) < 1e-5


@pytest.mark.parametrize("target", [GREEN, LONG])
def test_host_batching_on_and_off_is_the_same(shapes, monkeypatch, target):
    sigmas, noise, results = sigmas_of(shapes[0], 8), noise_of((2, 4, 16, 16)), []
    edit = edit_of(shapes[1], RED, target)
    edit = (*edit[:2], SteerLocalBlend.execute(edit[2], "circle", "circle", 0.3).args[0])
    for split in (False, True):
        split_rows(monkeypatch, shapes[0], split)
        model, rows = counted(shapes[0])
        results.append(run(lockstep(shapes, edit, model=model), EULER, sigmas, noise))
        assert set(rows) == ({4} if split else {8})
    assert relative(*results) < 1e-5


@pytest.mark.parametrize("blend", [False, True])
def test_a_batch_of_two_equals_two_singles_not_square(shapes, blend):
    sigmas, noise = sigmas_of(shapes[0], 8), noise_of((2, 4, 16, 11))
    edit = edit_of(shapes[1])
    if blend:
        edit = (*edit[:2], SteerLocalBlend.execute(edit[2], "circle", "circle", 0.3).args[0])
    together = run(lockstep(shapes, edit), EULER, sigmas, noise)
    singles = [run(lockstep(shapes, edit), EULER, sigmas, one) for one in noise.split(1)]
    assert relative(together, torch.cat([torch.cat([one[i : i + 1] for one in singles]) for i in (0, 1)])) < 1e-5
    assert torch.equal(together, run(lockstep(shapes, edit), EULER, sigmas, noise))


@pytest.mark.parametrize("sampler", ["euler_ancestral", "dpmpp_2m_sde", "lcm"])
def test_samplers_that_draw_noise_draw_it_alike_for_both(shapes, sampler):
    sampler, sigmas = comfy.samplers.sampler_object(sampler), sigmas_of(shapes[0], 8)
    both = run(lockstep(shapes, edit_of(shapes[1], RED, RED)), sampler, sigmas, noise_of((1, 4, 16, 16)))
    assert relative(both[1:], both[:1]) < 1e-5


def inverted(shapes, steps=12, seeds=(4,), cfg=1.0):
    scenes = [sample_scene(random.Random(seed), two=False) for seed in seeds]
    pixels = torch.stack([torch.from_numpy(render(scene).copy()) for scene in scenes]).float() / 255
    texts = [caption(scene) for scene in scenes]
    guider = host_guider(shapes[0], encode(shapes[1], texts[0]), encode(shapes[1], ""), cfg)
    sigmas = sigmas_of(shapes[0], steps)
    latent = {"samples": shapes[2].encode(pixels)}
    return texts[0], sigmas, *SteerDDIMInversion.execute(guider, sigmas, latent, 0, 1e-4, False).args


@pytest.mark.parametrize("sampler", ["euler", "ddim", "dpmpp_2m", "heun"])
@pytest.mark.parametrize("seeds", [(4,), (4, 5)])
def test_direct_inversion_keeps_the_source_on_its_trajectory(shapes, sampler, seeds):
    text, sigmas, latent, noise, inversion = inverted(shapes, seeds=seeds)
    seen, rows = [], []

    def spy(apply, args):
        seen.append((float(args["timestep"][0]), args["input"][: len(seeds)].clone()))
        rows.append(args["input"].shape[0])
        return apply(args["input"], args["timestep"], **args["c"])

    model = shapes[0].clone()
    model.set_model_unet_function_wrapper(spy)
    edit = edit_of(shapes[1], text, text.replace("background", "star"))
    guider = lockstep(shapes, edit, cfg=7.5, model=model, inversion=inversion)
    both = run(guider, comfy.samplers.sampler_object(sampler), sigmas, noise.generate_noise(latent), latent["samples"])
    assert torch.equal(both[: len(seeds)], latent["samples"])
    for sigma, x in seen[::2]:  # every other call is the target's unconditional
        assert torch.equal(x, inversion.latents[inversion.sigmas.index(sigma)])
    assert set(rows[::2]) == {2 * len(seeds)} and set(rows[1::2]) == {len(seeds)}


def test_direct_inversion_leaves_the_target_alone_without_shared_attention(shapes):
    text, sigmas, latent, noise, inversion = inverted(shapes)
    guider = lockstep(shapes, edit_of(shapes[1], text, GREEN), cross_end=0.0, self_end=0.0, inversion=inversion)
    start = noise.generate_noise(latent)
    both = run(guider, EULER, sigmas, start, latent["samples"])
    plain = run(
        host_guider(shapes[0], encode(shapes[1], GREEN), encode(shapes[1], ""), 5.0),
        EULER,
        sigmas,
        start,
        latent["samples"],
    )
    assert relative(both[1:], plain) < 1e-5


@pytest.mark.parametrize("target", [GREEN, LONG])
def test_capture_then_inject_equals_lockstep(shapes, target):
    model, clip, _ = shapes
    sigmas, noise = sigmas_of(model, 12), noise_of((1, 4, 16, 16))
    edit = edit_of(clip, RED, target, equalizer="circle: 1.5")
    empty = encode(clip, "")
    latent, attention = SteerCaptureAttention.execute(
        Noise(noise), host_guider(model, edit[0], empty, 5.0), EULER, sigmas, {"samples": torch.zeros_like(noise)}
    ).args
    injected = SteerInjectAttention.execute(model, attention, edit[2], 0.8, 0.4).args[0]
    later = run(host_guider(injected, edit[1], empty, 5.0), EULER, sigmas, noise)
    both = run(lockstep(shapes, edit), EULER, sigmas, noise)
    assert relative(torch.cat([latent["samples"], later]), both) < 1e-4
    assert relative(later, alone(shapes, target, noise, sigmas)) > 0.01


def test_the_local_blend_keeps_the_rest_exactly(shapes):
    sigmas, noise = sigmas_of(shapes[0], 20), noise_of((2, 4, 16, 16))
    edit = edit_of(shapes[1])
    edit = (*edit[:2], SteerLocalBlend.execute(edit[2], "circle", "circle", 0.3).args[0])
    source, target = run(lockstep(shapes, edit), EULER, sigmas, noise).chunk(2)
    same = (source == target).all(1)  # (batch, height, width)
    assert all(0.2 < float(one.float().mean()) < 0.98 for one in same)
    assert (source - target).abs().max() > 0.1


def test_the_model_is_as_before_after_success_and_interrupt(shapes):
    sigmas, noise = sigmas_of(shapes[0], 6), noise_of((1, 4, 16, 16))
    before = alone(shapes, RED, noise, sigmas)
    options = repr(shapes[0].model_options)
    guider = lockstep(shapes, edit_of(shapes[1]))
    first = run(guider, EULER, sigmas, noise)

    def interrupt(step, *_):
        if step == 2:
            management.interrupt_current_processing()

    with pytest.raises(management.InterruptProcessingException):
        run(guider, EULER, sigmas, noise, callback=interrupt)
        management.throw_exception_if_processing_interrupted()
    assert repr(shapes[0].model_options) == options
    assert torch.equal(alone(shapes, RED, noise, sigmas), before)
    assert torch.equal(run(guider, EULER, sigmas, noise), first)
