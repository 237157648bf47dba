import io
import random
import types
from copy import copy
from inspect import signature

import comfy.model_management as management
import comfy.ops
import comfy.samplers
import node_helpers
import nodes
import pytest
import torch
from comfy.ldm.modules.attention import optimized_attention
from comfy_extras.nodes_advanced_samplers import SamplerLCMUpscale
from comfy_extras.nodes_pag import PerturbedAttentionGuidance
from steer.lab.comfy.random_models import tiny_sdxl
from steer.lab.comfy.runs import Noise, counted, encode, host_guider, interrupted, noise_of, of_host, run, sigmas_of
from steer.lab.world.data import caption, render, sample_scene
from steer.nodes.attention_maps import SteerCaptureAttention, SteerInjectAttention
from steer.nodes.blended_diffusion import SteerBlendedSampler
from steer.nodes.ddim import SteerDDIMSampler
from steer.nodes.gradient_guidance import SteerGradientGuider
from steer.nodes.host.attention.unet import attention_sites
from steer.nodes.host.conditioning import HALF
from steer.nodes.inversion import SteerDDIMInversion
from steer.nodes.null_text import SteerNullText
from steer.nodes.prompt_to_prompt import SteerLocalBlend, SteerPromptEdit, SteerPromptToPromptGuider
from steer.tests import checks, oracles
from steer.tests.cases import checkered, some
from steer.tests.companions import Square
from steer.tests.fuzz_inputs import PROMPT, TARGET, frozen, unchanged
from steer.tests.host_models import (
    EPS,
    FLOW,
    ON_GPU,
    closed_form,
    hole,
    relative,
    split_rows,
    with_control,
    with_law,
    with_lora,
)

RED, GREEN = "a red circle on a blue background", "a green circle on a blue background"
LONG = "a red circle left of a blue star on a white background"
EULER = comfy.samplers.sampler_object("euler")


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


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "heun"])
def test_the_same_prompt_twice_is_plain_sampling(shapes, sampler):
    sampler, sigmas, noise = comfy.samplers.sampler_object(sampler), sigmas_of(shapes[0], 6), noise_of((1, 4, 16, 16))
    both = run(lockstep(shapes, edit_of(shapes[1], RED, RED)), sampler, sigmas, noise)
    plain = alone(shapes, RED, noise, sigmas, sampler=sampler)
    assert relative(both[:1], plain) < 1e-5 and relative(both[1:], plain) < 1e-5


def test_the_source_is_the_source_alone_whatever_the_edit(shapes):
    sigmas, noise = sigmas_of(shapes[0], 6), noise_of((1, 4, 16, 16))
    both = run(lockstep(shapes, edit_of(shapes[1]), cross_end=1.0, self_end=1.0), EULER, sigmas, noise)
    assert relative(both[:1], alone(shapes, RED, noise, sigmas)) < 1e-5
    assert relative(both[1:], alone(shapes, GREEN, noise, sigmas)) > 0.01


@pytest.mark.parametrize("target", [GREEN, LONG, ", ".join([GREEN] * 20)])
def test_gates_at_zero_are_two_independent_generations(shapes, target):
    sigmas, noise = sigmas_of(shapes[0], 6), noise_of((1, 4, 16, 16))
    both = run(lockstep(shapes, edit_of(shapes[1], RED, target), cross_end=0.0, self_end=0.0), EULER, sigmas, noise)
    assert relative(both[:1], alone(shapes, RED, noise, sigmas)) < 1e-5
    assert relative(both[1:], alone(shapes, target, noise, sigmas)) < 1e-5


@pytest.mark.parametrize("target", [GREEN, LONG])
def test_host_batching_on_and_off_is_the_same(shapes, monkeypatch, target):
    sigmas, noise, results = sigmas_of(shapes[0], 4), noise_of((2, 4, 16, 16)), []
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
    sigmas, noise = sigmas_of(shapes[0], 4), noise_of((2, 4, 16, 11))
    edit = edit_of(shapes[1])
    if blend:
        edit = (*edit[:2], SteerLocalBlend.execute(edit[2], "circle", "circle", 0.3).args[0])
    together = run(lockstep(shapes, edit), EULER, sigmas, noise)
    singles = [run(lockstep(shapes, edit), EULER, sigmas, one) for one in noise.split(1)]
    assert relative(together, torch.cat([torch.cat([one[i : i + 1] for one in singles]) for i in (0, 1)])) < 1e-5
    assert torch.equal(together, run(lockstep(shapes, edit), EULER, sigmas, noise))


ANCESTRAL = comfy.samplers.sampler_object("euler_ancestral")
DRAWING = {
    "euler_ancestral": lambda: ANCESTRAL,
    "dpmpp_2m_sde": lambda: comfy.samplers.sampler_object("dpmpp_2m_sde"),
    "lcm": lambda: comfy.samplers.sampler_object("lcm"),
    "DDIM eta 1": lambda: SteerDDIMSampler.execute(1.0)[0],
    "blended": lambda: SteerBlendedSampler.execute(ANCESTRAL, 0)[0],
}


@pytest.mark.parametrize("name, captured", checkered(list(DRAWING), [False, True]))
def test_samplers_that_draw_noise_draw_it_alike_for_both(shapes, name, captured):
    guider, sigmas = lockstep(shapes, edit_of(shapes[1], RED, RED)), sigmas_of(shapes[0], 4)
    noise, latent, sampler = noise_of((1, 4, 16, 16)), noise_of((1, 4, 16, 16), 5), DRAWING[name]()
    if captured:
        given = {"samples": latent, "noise_mask": hole()}
        both = SteerCaptureAttention.execute(Noise(noise), guider, sampler, sigmas, given).args[0]["samples"]
    else:
        both = run(guider, sampler, sigmas, noise, latent, hole())
    assert relative(both[1:], both[:1]) < 1e-5


CHURN = {"s_churn": 30.0}
OPTIONS = [
    ("euler", CHURN), ("heun", CHURN), ("dpm_2", CHURN), ("heunpp2", CHURN),
    ("dpm_adaptive", {"eta": 1.0}), ("dpmpp_2m_sde", {"solver_type": "heun", "eta": 0.7}),
    ("lcm", {"noise_clip_std": 0.5}), ("sa_solver", {"tau_func": lambda sigma: 0.5}),
]  # fmt: skip


def own_options(name, options):
    """The sampler with these options; skips where this host's does not have them."""
    sampler = comfy.samplers.ksampler(name, options)
    parameters = signature(sampler.sampler_function).parameters
    if not options.keys() <= parameters.keys() and "extra_options" not in parameters:
        pytest.skip(f"{name} has no {', '.join(options)} here")
    return sampler


def check_source_and_target(shapes, sampler, law, latent=None, mask=None):
    """Without shared attention both halves are the plain runs of their seed, whatever the sampler draws."""
    model, noise = closed_form(shapes[0], law), noise_of((1, 4, 8, 8))
    *halves, edit = edit_of(shapes[1])
    halves = [[[torch.full_like(half[0][0], mean), half[0][1]]] for half, mean in zip(halves, (1.0, -2.0), strict=True)]
    sigmas = sigmas_of(model, 5)

    def seeded(guider):
        torch.manual_seed(11)  # as the host does where it makes the noise
        return run(guider, sampler, sigmas, noise, latent, mask)

    first, second = seeded(lockstep(shapes, (*halves, edit), model=model)).chunk(2)
    plain = [seeded(host_guider(model, half, encode(shapes[1], ""), 5.0)) for half in halves]
    assert relative(*plain) > 0.01  # the prompts make a difference
    # whose steps are as long as it decides, by rounding too
    adaptive = ON_GPU and "dpm_adaptive" in sampler.sampler_function.__name__
    assert relative(first, plain[0]) < (1e-3 if adaptive else 1e-5)
    if "dpm_adaptive" not in sampler.sampler_function.__name__:  # the edit goes the source's steps
        assert relative(second, plain[1]) < 1e-5


@pytest.mark.parametrize("name, law", checkered(comfy.samplers.SAMPLER_NAMES, [EPS, FLOW]))
def test_every_sampler_of_the_host_draws_what_the_plain_run_draws(shapes, name, law):
    check_source_and_target(shapes, comfy.samplers.sampler_object(name), law)


@pytest.mark.parametrize(("name", "options"), OPTIONS)
def test_samplers_with_options_draw_what_the_plain_run_draws(shapes, name, options):
    check_source_and_target(shapes, own_options(name, options), EPS)


@pytest.mark.parametrize("name", ["euler_ancestral", "ddim", "dpmpp_sde"])
def test_a_noise_mask_draws_what_the_plain_run_draws(shapes, name):
    """The host's ddim draws other noise for what it keeps, which a soft mask lets through."""
    sampler, latent = comfy.samplers.sampler_object(name), noise_of((1, 4, 8, 8), 5)
    check_source_and_target(shapes, sampler, EPS, latent, 0.5 * hole(1, 8, 8))


def test_a_sampler_that_changes_the_size_draws_what_the_plain_run_draws(shapes):
    check_source_and_target(shapes, of_host(SamplerLCMUpscale, 2.0, 2, "bilinear"), EPS)


def test_what_the_model_draws_itself_is_left_alone(shapes):
    """A model call is no sampler: what a patch draws in it is its own, for rows of its own."""
    model, drawn = shapes[0].clone(), []

    def noisy(args):
        drawn.append(torch.randn_like(args["denoised"]))
        return args["denoised"]

    model.set_model_sampler_post_cfg_function(noisy)
    run(lockstep(shapes, edit_of(shapes[1]), model=model), EULER, sigmas_of(model, 3), noise_of((1, 4, 8, 8)))
    assert len(drawn) == 3 and not any(torch.equal(*one.chunk(2)) for one in drawn)


def inverted(shapes, steps=6, seeds=(4,), cfg=1.0):
    scenes = [sample_scene(random.Random(seed), two=False) for seed in seeds]
    pixels = torch.stack([torch.from_numpy(render(scene).copy()) for scene in scenes]).float() / 255
    texts = [caption(scene) for scene in scenes]
    guider = host_guider(shapes[0], encode(shapes[1], texts[0]), encode(shapes[1], ""), cfg)
    sigmas = sigmas_of(shapes[0], steps)
    latent = {"samples": shapes[2].encode(pixels)}
    return texts[0], sigmas, *SteerDDIMInversion.execute(guider, sigmas, latent, 0, 1e-4, False).args


@pytest.mark.parametrize("sampler, seeds", checkered(["euler", "ddim", "dpmpp_2m", "heun"], [(4,), (4, 5)]))
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
        assert torch.equal(x.cpu(), inversion.latents[inversion.sigmas.index(sigma)])
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
    assert relative(both[1:], plain) < 3e-5


@pytest.mark.parametrize("name", ["pre_cfg", "calc_cond_batch"])
def test_direct_inversion_with_a_patch_before_the_formula_of_guidance(shapes, name):
    """APG's kind, and that of Skip Layer Guidance Simple: what changes the predictions is asked, as on a plain run."""
    text, sigmas, latent, noise, inversion = inverted(shapes)
    model, start = shapes[0].clone(), noise.generate_noise(latent)

    def halved(args):
        if "conds_out" in args:
            cond, uncond = args["conds_out"]
        else:
            cond, uncond = comfy.samplers.calc_cond_batch(
                args["model"], args["conds"], args["input"], args["sigma"], {**args["model_options"], key: None}
            )
        return [cond, (cond + uncond) / 2]

    key = f"sampler_{name}_function"
    getattr(model, f"set_model_{key}")(halved)
    edit = edit_of(shapes[1], text, GREEN)
    guider = lockstep(shapes, edit, cross_end=0.0, self_end=0.0, model=model, inversion=inversion)
    both = run(guider, EULER, sigmas, start, latent["samples"])
    alone = host_guider(model, encode(shapes[1], GREEN), encode(shapes[1], ""), 5.0)
    plain = run(alone, EULER, sigmas, start, latent["samples"])
    assert torch.equal(both[:1], latent["samples"]) and relative(both[1:], plain) < 1e-5


@pytest.mark.parametrize("target", [GREEN, LONG])
def test_capture_then_inject_equals_lockstep(shapes, target):
    model, clip, _ = shapes
    sigmas, noise = sigmas_of(model, 6), noise_of((1, 4, 16, 16))
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
    sigmas, noise = sigmas_of(shapes[0], 10), noise_of((2, 4, 16, 16))
    edit = edit_of(shapes[1])
    edit = (*edit[:2], SteerLocalBlend.execute(edit[2], "circle", "circle", 0.3).args[0])
    source, target = run(lockstep(shapes, edit), EULER, sigmas, noise).chunk(2)
    same = (source == target).all(1)  # (batch, height, width)
    assert all(0.2 < float(one.float().mean()) < 0.98 for one in same)
    assert (source - target).abs().max() > 0.1


def test_direct_inversion_with_a_local_blend_keeps_the_picture_outside(shapes):
    text, sigmas, latent, noise, inversion = inverted(shapes, steps=20)
    shape, target = text.split()[2], text.replace(text.split()[1], "green")
    edit = edit_of(shapes[1], text, target)
    edit = (*edit[:2], SteerLocalBlend.execute(edit[2], shape, shape, 0.3).args[0])
    guider = lockstep(shapes, edit, cfg=7.5, inversion=inversion)
    both = run(guider, EULER, sigmas, noise.generate_noise(latent), latent["samples"])
    kept = (both[1] == latent["samples"][0]).all(0)
    assert torch.equal(both[:1], latent["samples"]) and 0.2 < float(kept.float().mean()) < 0.98


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


@pytest.mark.parametrize("sampler, call, direct", [("heun", 2, False), ("euler", 3, True)])
def test_an_interrupt_comes_before_the_next_call_inside_a_step_too(shapes, monkeypatch, sampler, call, direct):
    """The host looks for it between steps, and newer ones at each layer; a step may take several calls."""
    monkeypatch.setattr(comfy.ops, "run_every_op", lambda: None, raising=False)
    text, sigmas, latent, noise, inversion = inverted(shapes, steps=6)
    model, rows = interrupted(shapes[0], call)
    guider = lockstep(
        shapes, edit_of(shapes[1], text, GREEN), model=model, **({"inversion": inversion} if direct else {})
    )
    with pytest.raises(management.InterruptProcessingException):
        run(
            guider, comfy.samplers.sampler_object(sampler), sigmas, noise.generate_noise(latent), latent["samples"],
            callback=lambda *_: management.throw_exception_if_processing_interrupted(),
        )  # fmt: skip
    assert len(rows) == call


def added_to_attention(strength=0.5):
    """A patch as IPAdapter's: the layer's attention, and something of its own on top."""

    def patch(q, k, v, extra_options):
        return optimized_attention(q, k, v, extra_options["n_heads"]) + strength * torch.tanh(q)

    return patch


def with_adapter(model):
    model = model.clone()
    for block in attention_sites(model.model):
        model.set_model_attn2_replace(added_to_attention(), *block)
    return model


@pytest.mark.parametrize("ends", [(0.0, 0.0), (0.8, 0.4)])
def test_a_patch_that_adds_to_attn2_keeps_adding(shapes, ends):
    """Chained: what it adds is there, and what Prompt-to-Prompt changes is changed."""
    model, sigmas, noise = with_adapter(shapes[0]), sigmas_of(shapes[0], 4), noise_of((1, 4, 16, 16))
    both = run(lockstep(shapes, edit_of(shapes[1]), 5.0, *ends, model=model), EULER, sigmas, noise)
    assert relative(both[:1], alone(shapes, RED, noise, sigmas, model=model)) < 1e-5
    plain = alone(shapes, GREEN, noise, sigmas, model=model)
    assert relative(plain, alone(shapes, GREEN, noise, sigmas)) > 0.01
    assert (relative(both[1:], plain) < 1e-5) == (ends == (0.0, 0.0))


def test_the_patch_may_come_before_or_after_ours(shapes):
    """Whatever the order of the nodes."""
    model, clip, _ = shapes
    sigmas, noise, edit, empty = sigmas_of(model, 6), noise_of((1, 4, 16, 16)), edit_of(clip), encode(clip, "")
    attention = SteerCaptureAttention.execute(
        Noise(noise), host_guider(model, edit[0], empty, 5.0), EULER, sigmas, {"samples": torch.zeros_like(noise)}
    ).args[1]
    after = with_adapter(SteerInjectAttention.execute(model, attention, edit[2], 0.8, 0.4).args[0])
    before = SteerInjectAttention.execute(with_adapter(model), attention, edit[2], 0.8, 0.4).args[0]
    results = [run(host_guider(each, edit[1], empty, 5.0), EULER, sigmas, noise) for each in (before, after)]
    assert torch.equal(*results)
    assert relative(results[0], alone(shapes, GREEN, noise, sigmas, model=with_adapter(model))) > 0.01


@pytest.mark.parametrize("what", ["lora", "control", "two controls", "guided in an area", "noise mask", "PAG"])
def test_in_company(shapes, monkeypatch, what):
    """The source stays what it is alone; with the gates at 0 so does the target."""
    model, clip, _ = shapes
    sigmas, noise, latent, mask = sigmas_of(model, 8), noise_of((1, 4, 16, 16)), torch.zeros(1, 4, 16, 16), None
    source, target, edit = edit_of(clip)
    negative = encode(clip, "")
    if what == "lora":
        model = with_lora(model)
    if "control" in what:
        together = with_control([*source, *target])
        source, target = together[:1], together[1:]
        negative = with_control(negative)
        if what == "two controls":
            (text, options), given = target[0], target[0][1]["control"]
            again = given.copy().set_cond_hint(given.cond_hint_original, given.strength, (0.0, 1.0))
            target = [[text, {**options, "control": again}]]
    if what == "guided in an area":
        area = {"area": (12, 12, 2, 2), "strength": 1.0, "set_area_to_bounds": False}
        source, target = (node_helpers.conditioning_set_values(each, area) for each in (source, target))
    if what == "noise mask":
        latent, mask = noise_of((1, 4, 16, 16), 9), hole()
    if what == "PAG":
        model = PerturbedAttentionGuidance().patch(model, 2.0)[0] if hasattr(
            PerturbedAttentionGuidance, "patch"
        ) else PerturbedAttentionGuidance.execute(model, 2.0)[0]  # fmt: skip

    def plain(positive):
        return run(host_guider(model, positive, negative, 5.0), EULER, sigmas, noise, latent, mask)

    expected = plain(source), plain(target)
    for ends in ((0.0, 0.0), (0.8, 0.4)):
        guider = SteerPromptToPromptGuider.execute(model, source, target, negative, 5.0, edit, *ends).args[0]
        first, second = run(guider, EULER, sigmas, noise, latent, mask).chunk(2)
        assert relative(first, expected[0]) < 1e-5
        assert (relative(second, expected[1]) < 1e-5) == (ends == (0.0, 0.0))


def test_sdxl_structure(shapes):
    """Pooled text of each prompt, several transformers in a block; capture and inject as well."""
    model, clip = tiny_sdxl(), shapes[1]
    sigmas, noise = sigmas_of(model, 6), noise_of((2, 4, 16, 12))
    source, target, edit = edit_of(clip)
    source, target, empty = (
        [[text[0][0], {**text[0][1], "pooled_output": noise_of((1, 1280), seed)}]]
        for seed, text in enumerate((source, target, encode(clip, "")))
    )

    def plain(positive, model=model):
        return run(host_guider(model, positive, empty, 5.0), EULER, sigmas, noise)

    def together(cross_end, self_end):
        guider = SteerPromptToPromptGuider.execute(model, source, target, empty, 5.0, edit, cross_end, self_end).args[0]
        return run(guider, EULER, sigmas, noise).chunk(2)

    first, second = together(0.0, 0.0)
    assert relative(first, plain(source)) < 1e-5 and relative(second, plain(target)) < 1e-5
    first, second = together(0.8, 0.4)
    assert relative(first, plain(source)) < 1e-5 and relative(second, plain(target)) > 1e-3
    guider = host_guider(model, source, empty, 5.0)
    latent = {"samples": torch.zeros_like(noise)}
    attention = SteerCaptureAttention.execute(Noise(noise), guider, EULER, sigmas, latent).args[1]
    injected = SteerInjectAttention.execute(model, attention, edit, 0.8, 0.4).args[0]
    assert relative(plain(target, injected), second) < 1e-4


HOST_NODES = {  # what a half may go through on its way to the guider
    "area": lambda half, other: of_host(nodes.ConditioningSetArea, half, 96, 96, 16, 16, 1.0),
    "mask": lambda half, other: of_host(nodes.ConditioningSetMask, half, hole(1, 16, 16)[0], "default", 1.0),
    "steps": lambda half, other: of_host(nodes.ConditioningSetTimestepRange, half, 0.0, 1.0),
    "combined": lambda half, other: of_host(nodes.ConditioningCombine, half, other),
    "combined after": lambda half, other: of_host(nodes.ConditioningCombine, other, half),
    "combined with a longer one": lambda half, other: half + [[torch.cat([other[0][0]] * 2, 1), other[0][1]]],
    "averaged": lambda half, other: of_host(nodes.ConditioningAverage, half, other, 0.5),
    "from a file": lambda half, other: through_a_file(half),
}


def through_a_file(conditioning):
    """As a node does that keeps conditionings on the disk: plain values only."""
    file = io.BytesIO()
    torch.save(conditioning, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize(
    "name", some([*HOST_NODES, "ControlNet"], "area", "mask", "combined after", "averaged", "from a file", "ControlNet")
)
def test_halves_are_known_behind_nodes_of_the_host(shapes, name):
    *halves, edit = edit_of(shapes[1])
    other = encode(shapes[1], "a blue star on a white background")
    if name == "ControlNet":  # one for both, as the host's node does
        halves = [[half] for half in with_control([*halves[0], *halves[1]])]
    else:
        halves = [HOST_NODES[name](half, other) for half in halves]
    negative, model = encode(shapes[1], ""), shapes[0]
    guider = SteerPromptToPromptGuider.execute(model, *halves, negative, 5.0, edit, 0.8, 0.4)[0]
    sigmas, noise = sigmas_of(model, 2), noise_of((1, 4, 16, 16))
    first, second = run(guider, EULER, sigmas, noise).chunk(2)
    plain = [run(host_guider(model, half, negative, 5.0), EULER, sigmas, noise) for half in halves]
    close = 3e-5 if ON_GPU else 1e-5
    assert relative(first, plain[0]) < close and relative(second, plain[1]) > 1e-3  # the edit acts


def test_the_source_may_be_a_negative(shapes):
    """Negative-prompt inversion, and null-text begun from it."""
    text, sigmas, latent, noise, inversion = inverted(shapes, steps=4)
    source, target, edit = edit_of(shapes[1], text, GREEN)
    null = SteerNullText.execute(shapes[0], source, source, 5.0, inversion, 2, 0.01, 1e-5)[0]
    for negative, source_negative in ((source, None), (null, None), (encode(shapes[1], ""), source)):
        guider = SteerPromptToPromptGuider.execute(
            shapes[0], source, target, negative, 5.0, edit, 0.8, 0.4, source_negative
        )[0]
        assert run(guider, EULER, sigmas, noise.generate_noise(latent), latent["samples"]).isfinite().all()
    assert not any(HALF in options for _, options in null)  # so that a file can hold it, as it held it before


def test_other_nodes_of_the_same_texts_are_the_same_edit(shapes):
    """The host runs a node again, or takes it from its cache: what belongs together is told by the texts."""
    first, again = edit_of(shapes[1]), edit_of(shapes[1], equalizer="circle: 2")
    sigmas, noise = sigmas_of(shapes[0], 2), noise_of((1, 4, 8, 8))
    once = run(lockstep(shapes, first), EULER, sigmas, noise)
    for halves in ((first[0], again[1]), (again[0], first[1])):
        assert torch.equal(run(lockstep(shapes, (*halves, first[2])), EULER, sigmas, noise), once)


@pytest.mark.parametrize(
    ("target", "equalizer", "reported"),
    [(RED, "", True), (RED.replace(" circle", "  circle"), "circle: 1", True), (RED, "circle: 2", False),
     (RED.replace("red", "(red:1.3)"), "", False), (GREEN, "", False)],
)  # fmt: skip
def test_equal_prompts_without_an_equalizer_are_a_warning(shapes, caplog, target, equalizer, reported):
    with caplog.at_level("INFO", "steer"):
        told = SteerPromptEdit.execute(shapes[1], RED, target, "auto", equalizer).ui
    assert [text.startswith("nothing changes: both prompts are the same") for text in told["steer_warning"]] == (
        [True] * reported
    )
    assert told["text"][0].startswith("nothing changes") == reported
    assert ("SteerPromptEdit: nothing changes" in caplog.text) == reported


@pytest.mark.parametrize(
    ("mapping", "target", "texts", "told"),
    [
        ("auto", GREEN, (), "auto: replace  red > green"),
        ("auto", "a big green circle", (), "auto: refine  + big, + green, - red, - on, - a, - blue, - background"),
        ("refine", RED, ("circle: 2", "red: 0.2-0.6, a: 0.4"),
         "refine  no word changes; equalizer: circle x2; windows: red 0.2-0.6, a 0-0.4"),
    ],
)  # fmt: skip
def test_what_became_of_the_words_is_told(shapes, mapping, target, texts, told):
    text = SteerPromptEdit.execute(shapes[1], RED, target, mapping, *(texts or [""])).ui["text"][0]
    line, _, kept = text.partition("\n\n")
    assert line == told and kept.startswith("kept: a, ")


def test_a_control_on_one_prompt_only_is_refused(shapes):
    model, rows = counted(shapes[0])
    source, target, edit = edit_of(shapes[1])
    guider = lockstep(shapes, (with_control(source), target, edit), model=model)
    with pytest.raises(ValueError, match="SteerPromptToPromptGuider: source and target differ in 'control'"):
        run(guider, EULER, sigmas_of(model, 3), noise_of((1, 4, 16, 16)))
    assert not rows


class TestBadInput:
    def test_words_that_are_not_there(self, shapes):
        clip = shapes[1]
        with pytest.raises(ValueError, match="SteerPromptEdit: 'cat' is not in the prompt .* words are: a, green"):
            edit_of(clip, equalizer="cat: 2")
        with pytest.raises(ValueError, match="SteerPromptEdit: .*'cat'"):
            edit_of(clip, windows="cat: 0.5")
        with pytest.raises(ValueError, match="SteerLocalBlend: source_words is empty; name .*circle"):
            SteerLocalBlend.execute(edit_of(clip)[2], " ", "circle", 0.3)
        with pytest.raises(ValueError, match="SteerLocalBlend: 'red' is not in the prompt .*green"):
            SteerLocalBlend.execute(edit_of(clip)[2], "red", "red", 0.3)
        with pytest.raises(ValueError, match="SteerPromptEdit: replace needs as many words"):
            edit_of(clip, RED, LONG, "replace")

    WRONG = {
        "swapped": (lambda a, b, plain: (a[1], a[0], a[2]), "source is the edit's target; connect"),
        "the target twice": (lambda a, b, plain: (a[1], a[1], a[2]), "source is the edit's target; connect"),
        "the source twice": (lambda a, b, plain: (a[0], a[0], a[2]), "target is the edit's source; connect"),
        "a plain source": (lambda a, b, plain: (plain, a[1], a[2]), "source is not from SteerPromptEdit .*Encode"),
        "a plain target": (lambda a, b, plain: (a[0], plain, a[2]), "target is not from SteerPromptEdit .*Encode"),
        "no source": (lambda a, b, plain: ([], a[1], a[2]), "source is not from SteerPromptEdit"),
        "another's source": (lambda a, b, plain: (b[0], a[1], a[2]), "source is the source of another edit, from 'a r"),
        "another's target": (lambda a, b, plain: (a[0], b[1], a[2]), "target is the target of another edit, from 'a r"),
        "another's edit": (lambda a, b, plain: (a[0], a[1], b[2]), "source is the source of another .* edit is from"),
        "another's halves": (lambda a, b, plain: (b[0], b[1], a[2]), "source is the source of another edit"),
        "combined crosswise": (lambda a, b, plain: (a[0] + plain, plain + a[1], a[2]),
                               "source and target were combined with .* another order"),
        "both in one": (lambda a, b, plain: (a[0] + a[1], a[1] + a[0], a[2]), "source is the edit's target"),
        "joined": (lambda a, b, plain: (*(of_host(nodes.ConditioningConcat, half, plain) for half in a[:2]), a[2]),
                   "source has 154 tokens and its edit is about 77: something was joined"),
    }  # fmt: skip

    @pytest.mark.parametrize("name", WRONG)
    def test_conditionings_that_are_not_the_edits(self, shapes, name):
        """Before the first model call, and before anything is sampled: the node itself fails."""
        wires, message = self.WRONG[name]
        edit, other, plain = edit_of(shapes[1]), edit_of(shapes[1], RED, LONG), encode(shapes[1], RED)
        model, rows = counted(shapes[0])
        with pytest.raises(ValueError, match=f"SteerPromptToPromptGuider: {message}"):
            lockstep(shapes, wires(edit, other, plain), model=model)
        assert not rows

    @pytest.mark.parametrize("name", ["cross_end", "self_end"])
    def test_shares(self, shapes, name):
        with pytest.raises(ValueError, match=f"SteerPromptToPromptGuider: {name} is 1.5"):
            lockstep(shapes, edit_of(shapes[1]), **{name: 1.5})

    def test_two_ways_for_the_source(self, shapes):
        with pytest.raises(ValueError, match="source_negative has no effect"):
            lockstep(shapes, edit_of(shapes[1]), source_negative=encode(shapes[1], ""), inversion=inverted(shapes)[-1])

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"sigmas": torch.tensor([14.6, 5.0, 0.0])}, "sigma 14.6 is not one that the inversion recorded"),
            ({"noise": noise_of((1, 4, 16, 16))}, "does not start where the inversion ends"),
            ({"latent": torch.full((1, 4, 16, 16), float("nan"))}, "NaN"),
            ({"latent": torch.ones(1, 16, 16, 16), "noise": noise_of((1, 16, 16, 16))}, "16 channels"),
            ({"sigmas": torch.tensor([1.0])}, "at least two"),
        ],
    )
    def test_runs_that_do_not_fit_the_inversion(self, shapes, change, message):
        text, sigmas, latent, noise, inversion = inverted(shapes)
        model, rows = counted(shapes[0])
        guider = lockstep(shapes, edit_of(shapes[1], text, GREEN), model=model, inversion=inversion)
        given = {"sigmas": sigmas, "noise": noise.generate_noise(latent), "latent": latent["samples"], **change}
        with pytest.raises(ValueError, match=f"SteerPromptToPromptGuider: .*{message}"):
            run(guider, EULER, *given.values())
        assert not rows

    def test_an_inversion_of_another_family(self, shapes):
        inversion = inverted(shapes)[-1]
        with pytest.raises(ValueError, match="SteerPromptToPromptGuider: the inversion is of a variance-exploding"):
            lockstep(shapes, edit_of(shapes[1]), model=with_law(shapes[0], FLOW), inversion=inversion)

    @pytest.mark.parametrize("guided", [False, True])
    def test_inverting_with_two_prompts(self, shapes, guided):
        guider = lockstep(shapes, edit_of(shapes[1]))
        if guided:
            guider = SteerGradientGuider.execute(guider, Square(), 1.0, 0.0, 1.0, False)[0]
        with pytest.raises(ValueError, match="invert with a plain guider"):
            SteerDDIMInversion.execute(guider, sigmas_of(shapes[0], 3), {"samples": noise_of((1, 4, 16, 16))}, 0, 1e-4)

    def test_a_model_without_cross_attention(self, shapes):
        model = shapes[0].clone()
        model.model = types.SimpleNamespace(
            diffusion_model=torch.nn.Linear(1, 1), model_sampling=shapes[0].model.model_sampling
        )
        with pytest.raises(ValueError, match="SteerPromptToPromptGuider: .*no cross-attention blocks"):
            lockstep(shapes, edit_of(shapes[1]), model=model)

    def test_an_encoder_without_clips_tokens(self, shapes):
        clip = copy(shapes[1])
        clip.tokenize, clip.tokenizer = lambda text: {"t5xxl": [[(1, 1.0)]]}, object()
        with pytest.raises(ValueError, match="SteerPromptEdit: this text encoder .object. has no CLIP tokens"):
            edit_of(clip)

    def test_a_patch_that_changes_the_tokens(self, shapes):
        def longer(n, context, value, extra_options):
            return n, torch.cat([context, context[:, :4]], 1), torch.cat([value, value[:, :4]], 1)

        model = shapes[0].clone()
        model.set_model_attn2_patch(longer)
        with pytest.raises(ValueError, match="a patch on attn2 changes the number of positions or tokens"):
            run(lockstep(shapes, edit_of(shapes[1]), model=model), EULER, sigmas_of(model, 3), noise_of((1, 4, 16, 16)))


class TestInjection:
    @pytest.fixture
    def captured(self, shapes):
        edit, noise = edit_of(shapes[1]), noise_of((1, 4, 16, 16))
        guider = host_guider(shapes[0], edit[0], encode(shapes[1], ""), 5.0)
        latent = {"samples": torch.zeros_like(noise)}
        attention = SteerCaptureAttention.execute(Noise(noise), guider, EULER, sigmas_of(shapes[0], 6), latent)
        return edit, noise, attention.args[1]

    def refused(self, shapes, captured, message, positive=None, sigmas=None, noise=None, **inject):
        edit, start, attention = captured
        given = {"edit": edit[2], "cross_end": 0.8, "self_end": 0.4, **inject}
        model, rows = counted(shapes[0])
        with pytest.raises(ValueError, match=f"SteerInjectAttention: .*{message}"):
            model = SteerInjectAttention.execute(model, attention, *given.values()).args[0]
            guider = host_guider(model, edit[1] if positive is None else positive, encode(shapes[1], ""), 5.0)
            run(guider, EULER, sigmas_of(model, 6) if sigmas is None else sigmas, start if noise is None else noise)
        assert not rows

    def test_other_conditioning(self, shapes, captured):
        self.refused(shapes, captured, "no conditioning of this run belongs", positive=encode(shapes[1], GREEN))

    def test_the_source_instead_of_the_target(self, shapes, captured):
        self.refused(shapes, captured, "no conditioning of this run belongs", positive=captured[0][0])

    def test_a_capture_of_another_prompt(self, shapes, captured):
        message = f"captured run's prompt is '{RED}' and the edit's source '{GREEN}'"
        self.refused(shapes, captured, message, edit=edit_of(shapes[1], GREEN, RED)[2])

    def test_other_sigmas(self, shapes, captured):
        self.refused(shapes, captured, "was not recorded", sigmas=sigmas_of(shapes[0], 7))

    def test_other_size_and_batch(self, shapes, captured):
        self.refused(shapes, captured, "recording is of 1 latents", noise=noise_of((1, 4, 16, 12)))

    def test_further_than_captured(self, shapes, captured):
        self.refused(shapes, captured, "reach further than what was captured", cross_end=0.9)
        self.refused(shapes, captured, "reach further than what was captured", self_end=0.5)

    def test_other_prompt(self, shapes, captured):
        long = edit_of(shapes[1], ", ".join([RED] * 20), GREEN)
        self.refused(shapes, captured, "77 tokens and the edit's source 231", edit=long[2])

    def test_local_blend(self, shapes, captured):
        blend = SteerLocalBlend.execute(captured[0][2], "circle", "circle", 0.3).args[0]
        self.refused(shapes, captured, "needs the source sampled alongside", edit=blend)

    def test_one_capture_serves_a_batch(self, shapes, captured):
        edit, noise, attention = captured
        model = SteerInjectAttention.execute(shapes[0], attention, edit[2], 0.8, 0.4).args[0]
        guider = host_guider(model, edit[1], encode(shapes[1], ""), 5.0)
        sigmas = sigmas_of(model, 6)
        two = run(guider, EULER, sigmas, noise.repeat(2, 1, 1, 1))
        assert relative(two, run(guider, EULER, sigmas, noise).repeat(2, 1, 1, 1)) < 1e-5


def prompt_edit_on_family(family):
    source, target, edit = oracles.edit_of(family)
    assert source[0][0].shape[1] == target[0][0].shape[1] == edit.source.length
    (green,) = edit.target.positions("green")
    assert edit.source.positions("red") == [green] and float(edit.mapper[green, green]) == 1.0
    blend = SteerLocalBlend.execute(edit, "red", "green", 0.3)[0].blend
    assert blend.source_tokens == blend.target_tokens == (green,)


def prompt_to_prompt_on_family(family):
    def together(cross_end, self_end):
        source, target, edit = oracles.prompts_for_attention(family)
        guider = SteerPromptToPromptGuider.execute(
            family.model(), source, target, family.prompt(""), 3.0, edit, cross_end, self_end
        ).args[0]
        first, second = run(guider, oracles.EULER, sigmas_of(family.model(), 4), oracles.noise_for(family)).chunk(2)
        assert relative(first, oracles.alone(family, source)) < 1e-4
        return second, oracles.alone(family, target)

    second, plain = together(0.0, 0.0)
    assert relative(second, plain) < 1e-4
    second, plain = together(1.0, 1.0)
    assert relative(second, plain) > 1e-3


def check_edit(world, edit):
    assert edit.mapper.shape == (edit.source.length, edit.target.length)
    for values in (edit.mapper, edit.kept, edit.equalizer):
        assert torch.isfinite(values).all()


def with_edit(world, source, target, edit, run):
    model, empty = world.usual["MODEL"]["shapes"], world.usual["CONDITIONING"]["empty"]
    made = SteerPromptToPromptGuider.execute(model, source, target, empty, 3.0, edit, 0.8, 0.4)
    checks.run_and_check(run, guider=made[0])


def check_edited(world, given, run, output):
    source, target, edit = output
    checks.check_conditioning(source)
    checks.check_conditioning(target)
    check_edit(world, edit)
    with_edit(world, source, target, edit, run)


def check_blended(world, given, run, output):
    (edit,) = output
    assert unchanged(frozen({**vars(given["edit"]), "blend": None}), {**vars(edit), "blend": None}) and edit.blend
    texts = world.usual["CONDITIONING"]
    with_edit(world, texts["source of the edit"], texts["target of the edit"], edit, run)


ORACLE = {
    "SteerPromptEdit": ("one embedding for each token, each word at its place", prompt_edit_on_family),
    "SteerLocalBlend": ("one embedding for each token, each word at its place", prompt_edit_on_family),
    "SteerPromptToPromptGuider": (
        "source rows as sampled alone; the target's too with ends 0, and else drawn to the source",
        prompt_to_prompt_on_family,
    ),
}
CHECK = {
    "SteerPromptEdit": (check_edited, checks.RUN),
    "SteerLocalBlend": (check_blended, checks.RUN),
    "SteerPromptToPromptGuider": (checks.guider, checks.RUN),
}
USUAL = {
    "SteerPromptEdit": {
        "source": (PROMPT,),
        "target": (TARGET, PROMPT),
        "equalizer": ("", "star: 2", "blue: -1; star: 0"),
        "word_windows": ("", "star: 0.4", "star: 0.2-0.6"),
    },
    "SteerLocalBlend": {"source_words": ("circle",), "target_words": ("star",)},
}
