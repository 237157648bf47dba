"""Steer's nodes with what people combine them with in the host: the same as the host's own, or the formula."""

import random
from functools import partial

import folder_paths
import node_helpers
import nodes
import pytest
import torch
from comfy_extras import nodes_custom_sampler, nodes_sag
from comfy_extras.nodes_differential_diffusion import DifferentialDiffusion
from steer.lab.comfy.runs import Noise, counted, encode, host_guider, noise_of, of_host, run, sigmas_of
from steer.lab.models import stock
from steer.lab.world.data import caption, render, sample_scene
from steer.nodes.attention_maps import SteerCaptureAttention, SteerInjectAttention
from steer.nodes.blended_diffusion import SteerBlendedSampler
from steer.nodes.ddim import SteerDDIMSampler
from steer.nodes.diffedit import SteerDiffEditMask
from steer.nodes.guidance import SteerCFGGuider
from steer.nodes.host.gradients import models as gradient_models
from steer.nodes.host.gradients.model import Differentiable
from steer.nodes.inversion import SteerDDIMInversion
from steer.nodes.langevin import SteerLangevinSampler
from steer.nodes.null_text import SteerNullText
from steer.nodes.paint_with_words import SteerPaintWithWords, SteerRegion
from steer.nodes.prompt_to_prompt import SteerLocalBlend, SteerPromptEdit, SteerPromptToPromptGuider
from steer.nodes.repaint import SteerRePaintSampler
from steer.nodes.runs import prompt_to_prompt as prompt_to_prompt_run
from steer.nodes.trajectory_blend import SteerTrajectoryBlendSampler
from steer.tests.cases import some
from steer.tests.companions import (
    COMPANIONS,
    EULER,
    GREEN,
    GUIDANCE,
    GUIDERS,
    LORA,
    ONE_STEP,
    PLACES,
    RED,
    SHAPE,
    captured,
    check_slope,
    companion,
    guided,
    guider_of,
    left_half,
    lora_hooks,
    write_lora,
)
from steer.tests.host_models import EPS, again, closed_form, hole, mean_conditioning, relative
from steer.tests.oracles import check_edit_guider


@pytest.fixture(scope="module", autouse=True)
def lora_file(shapes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("loras")
    write_lora(shapes[0], folder)
    folder_paths.add_model_folder_path("loras", str(folder))


def with_companion(shapes, name, strength=1.0, positive=RED, negative=""):
    """(model, positive, negative) with the companion."""
    with_it = companion(shapes, name, strength)
    positive, negative = encode(shapes[1], positive), encode(shapes[1], negative)
    return with_it.model, with_it.on(positive), list(negative) if name in PLACES else with_it.on(negative)


def ddim(eta=0.0):
    return SteerDDIMSampler.execute(eta)[0]


def steer_guider(model, positive, negative, cfg=3.0, negative_scale=1.0, empty=None):
    return SteerCFGGuider.execute(model, positive, negative, cfg, 0.0, 1.0, negative_scale, empty)[0]


def without(*names):
    """The other companions."""
    return [name for name in COMPANIONS if name not in names]


@pytest.mark.parametrize("name", some(COMPANIONS, "LoRA hook", "mask", "SAG"))
def test_gradient_guider(shapes, name):
    """Made anew each time, as the host loses count of keyframes between runs at the same level."""
    check_slope(shapes, lambda: host_guider(*with_companion(shapes, name), 3.0))


@pytest.mark.parametrize("name", some(without("ControlNet", "PAG"), "T2I-Adapter", "area"))
def test_prompt_to_prompt(shapes, name):
    """The others are in test_prompt_to_prompt.py. With the gates at 0 two generations, else the source stays."""
    sigmas, noise = sigmas_of(shapes[0], 3), noise_of(SHAPE)
    with_it, edit = companion(shapes, name), SteerPromptEdit.execute(shapes[1], RED, GREEN, "auto", "").args
    source, target = map(with_it.on, edit[:2])
    negative = encode(shapes[1], "") if name in PLACES else with_it.on(encode(shapes[1], ""))

    def alone(positive):
        return run(host_guider(with_it.model, positive, negative, 3.0), EULER, sigmas, noise)

    def together(*ends):
        guider = SteerPromptToPromptGuider.execute(with_it.model, source, target, negative, 3.0, edit[2], *ends)[0]
        return run(guider, EULER, sigmas, noise).chunk(2)

    first, second = together(0.0, 0.0)
    assert relative(first, alone(source)) < 1e-5 and relative(second, alone(target)) < 3e-5
    first, second = together(0.8, 0.4)
    assert relative(first, alone(source)) < 1e-5 and relative(second, alone(target)) > 1e-3


@pytest.mark.parametrize("name", some(COMPANIONS, "ControlNet", "scheduled LoRA hook", "area", "IPAdapter"))
def test_direct_edit(shapes, name):
    """Each prompt's estimate is that of the host's guider with the same."""

    def make():
        with_it, empty = companion(shapes, name), encode(shapes[1], "")
        source, target = (with_it.on(encode(shapes[1], text)) for text in (RED, GREEN))
        return with_it.model, source, target, empty if name in PLACES else with_it.on(empty)

    check_edit_guider(make, noise_of(SHAPE, 5), 2.0, 1.0, 3.0)


@pytest.fixture(scope="module")
def alone(shapes):
    """What a sampler gives without a companion; made once."""
    found, sigmas, conds = {}, sigmas_of(shapes[0], 3), (encode(shapes[1], RED), encode(shapes[1], ""))

    def given(name, sampler, known=None, mask=None):
        if name not in found:
            found[name] = run(steer_guider(shapes[0], *conds), sampler, sigmas, noise_of(SHAPE), known, mask)
        return found[name]

    return given


@pytest.mark.parametrize("name", some(COMPANIONS, "T2I-Adapter", "area", "PAG"))
def test_guider_and_ddim(shapes, alone, name):
    """As the host's guider and euler with the same; it acts, and at strength 0 it does not."""
    sigmas, noise, plain = sigmas_of(shapes[0], 3), noise_of(SHAPE), alone("ddim", ddim())
    model, *conds = with_companion(shapes, name)
    ours = run(steer_guider(model, *conds), ddim(), sigmas, noise)
    model, *conds = with_companion(shapes, name)
    assert relative(ours, run(host_guider(model, *conds, 3.0), EULER, sigmas, noise)) < 1e-5
    assert relative(ours, plain) > 0.01
    model, *conds = with_companion(shapes, name, 0.0)
    assert relative(run(steer_guider(model, *conds), ddim(), sigmas, noise), plain) < 1e-5


@pytest.mark.parametrize("name", some(COMPANIONS, "ControlNet", "scheduled LoRA hook", "IPAdapter"))
def test_repaint_and_blended(shapes, alone, name):
    """Where all is painted they are euler; else what is kept is kept, and the companion acts on what is painted."""
    sigmas, noise, known = sigmas_of(shapes[0], 3), noise_of(SHAPE), noise_of(SHAPE, 5)
    model, *conds = with_companion(shapes, name)
    guider, everything, mask = steer_guider(model, *conds), torch.ones(1, 1, 8, 8), hole(height=8, width=8)
    expected = run(guider, EULER, sigmas, noise)
    for method, all_of_it, part in (
        ("repaint", SteerRePaintSampler.execute(1, 1, 0.0)[0], SteerRePaintSampler.execute(2, 1, 1.0)[0]),
        ("langevin", SteerLangevinSampler.execute(1, 0.5)[0], SteerLangevinSampler.execute(2, 0.5)[0]),
        ("blended", *(SteerBlendedSampler.execute(EULER, 0)[0],) * 2),
    ):
        assert relative(run(guider, all_of_it, sigmas, noise, known, everything), expected) < 1e-5
        out, without = run(guider, part, sigmas, noise, known, mask), alone(method, part, known, mask)
        kept = (mask == 0).expand_as(out)
        torch.testing.assert_close(out[kept], known[kept], rtol=1e-5, atol=1e-5)
        assert relative(out[~kept], without[~kept]) > 0.01


@pytest.fixture(scope="module")
def pictured(shapes):
    """(caption, LATENT) of a scene, small."""
    with torch.inference_mode():
        scene = sample_scene(random.Random(3000))
        pixels = torch.from_numpy(render(scene).copy())[None, ::2, ::2].float() / 255
        return caption(scene), {"samples": shapes[2].encode(pixels)}


def inverted(guider, pictured, sigmas):
    """(how far sampling with a guider and a sampler comes from the picture, inversion, report)"""
    output = SteerDDIMInversion.execute(guider, sigmas, pictured[1], 5, 1e-4, False)
    latent, noise, inversion = output.args

    def error(guider, sampler, mask=None):
        back = run(guider, sampler, sigmas, noise.generate_noise(latent), latent["samples"], mask)
        return float((back - latent["samples"]).abs().max() / latent["samples"].std())

    return error, inversion, output.ui["text"][0]


@pytest.mark.parametrize("name", some(COMPANIONS, "ControlNet", "LoRA hook", "SAG"))
def test_inversion_and_trajectory_blend(shapes, pictured, name):
    """Back to the picture with it, and not without."""
    sigmas = sigmas_of(shapes[0], 20)[16:]
    model, *conds = with_companion(shapes, name, positive=pictured[0])
    guider = host_guider(model, *conds, 1.0)
    error, inversion, _ = inverted(guider, pictured, sigmas)
    assert error(guider, ddim()) < 2e-3
    assert error(guider, SteerTrajectoryBlendSampler.execute(EULER, inversion)[0], hole(height=8, width=8)) < 2e-3
    assert error(host_guider(shapes[0], encode(shapes[1], pictured[0]), encode(shapes[1], ""), 1.0), ddim()) > 0.02


@pytest.mark.parametrize("recompute", [False, True])
def test_gradient_through_a_lora_hook_on_the_positive_alone(shapes, monkeypatch, recompute):
    """Positive and negative have other weights, on the way back too."""
    monkeypatch.setattr(gradient_models, "Differentiable", partial(Differentiable, recompute=recompute))
    model, positive, _ = with_companion(shapes, "LoRA hook", 2.0)
    check_slope(shapes, lambda: host_guider(model, positive, encode(shapes[1], ""), 3.0))


@pytest.mark.parametrize("name", some(without(*GUIDANCE, "area"), "mask", "T2I-Adapter"))
def test_null_text(shapes, pictured, name):
    """Guidance comes back to the picture better with it than without."""
    sigmas = sigmas_of(shapes[0], 20)[17:]
    model, *conds = with_companion(shapes, name, positive=pictured[0])
    error, inversion, _ = inverted(host_guider(model, *conds, 1.0), pictured, sigmas)
    found = SteerNullText.execute(model, *conds, 5.0, inversion, 3, 0.05, 0.0)[0]
    ours, plain = (error(host_guider(model, conds[0], given, 5.0), EULER) for given in (found, conds[1]))
    assert ours < 0.8 * plain


@pytest.mark.parametrize("name", some(GUIDANCE, "PAG"))
def test_null_text_says_that_a_patch_changes_guidance(shapes, pictured, name):
    model, *conds = with_companion(shapes, name, positive=pictured[0])
    inversion = inverted(host_guider(shapes[0], *conds, 1.0), pictured, sigmas_of(shapes[0], 20)[18:])[1]
    model, rows = counted(model)
    with pytest.raises(ValueError, match="SteerNullText: the model has a patch that changes guidance.*remove it"):
        SteerNullText.execute(model, *conds, 5.0, inversion, 4, 0.02, 0.0)
    assert not rows


def heat_of(shapes, name, strength=1.0):
    with_it = companion(shapes, name, strength)
    prompts = (with_it.on(encode(shapes[1], text)) for text in (RED, GREEN))
    latent = {"samples": noise_of(SHAPE, 5)}
    return SteerDiffEditMask.execute(with_it.model, *prompts, latent, 0.5, 3, 0.5, 0).args[1]


@pytest.mark.parametrize("name", some(COMPANIONS, "ControlNet", "area", "PAG"))
def test_diffedit(shapes, name):
    """It acts on the contrast unless it acts on guidance, which the contrast has none of; at strength 0 it does not."""
    plain = heat_of(shapes, name, 0.0)
    assert torch.allclose(plain, heat_of(shapes, "none"), atol=1e-4)
    assert torch.allclose(heat_of(shapes, name), plain, atol=1e-3) == (name in GUIDANCE)


@pytest.mark.parametrize("name", some(["LoRA", "mask alone", *without(*PLACES)], "mask alone", "IPAdapter", "PAG"))
def test_capture_and_inject(shapes, name):
    """Capturing changes nothing, and the source's recording in the target's run is Prompt-to-Prompt's target."""
    sigmas, noise = sigmas_of(shapes[0], 3), noise_of(SHAPE)
    with_it, edit = companion(shapes, name), SteerPromptEdit.execute(shapes[1], RED, GREEN, "auto", "").args
    source, target, negative = map(with_it.on, (*edit[:2], encode(shapes[1], "")))
    latent, attention = captured(with_it.model, source, negative, noise, sigmas)
    guider = SteerPromptToPromptGuider.execute(with_it.model, source, target, negative, 3.0, edit[2], 0.8, 0.4)[0]
    first, second = run(guider, EULER, sigmas, noise).chunk(2)
    assert relative(latent["samples"], first) < 3e-5
    injected = SteerInjectAttention.execute(with_it.model, attention, edit[2], 0.8, 0.4)[0]
    out = run(host_guider(injected, target, negative, 3.0), EULER, sigmas, noise)
    # PAG's own calls see the source's attention of the recorded call, not of its own
    assert relative(out, second) < (0.02 if name == "PAG" else 1e-4) and relative(out, first) > 1e-3
    plain = captured(shapes[0], edit[0], encode(shapes[1], ""), noise, sigmas, (0.0, 0.0))[1]
    assert any((attention.maps[grid] - plain.maps[grid]).abs().max() > 1e-4 for grid in plain.maps)


@pytest.mark.parametrize("name", some(without("ControlNet", "area"), "scheduled LoRA hook", "SAG"))
def test_paint_with_words(shapes, name):
    """The others are in test_paint_with_words.py. Weight 0 is the companion alone, and more acts."""
    sigmas, noise = sigmas_of(shapes[0], 3), noise_of(SHAPE)
    with_it, regions = companion(shapes, name), SteerRegion.execute(left_half(), "circle", 1.0)[0]

    def out(weight):
        model, positive = SteerPaintWithWords.execute(with_it.model, shapes[1], RED, regions, weight).args
        return run(host_guider(model, with_it.on(positive), with_it.on(negative), 3.0), EULER, sigmas, noise)

    negative = encode(shapes[1], "")
    plain = host_guider(with_it.model, with_it.on(encode(shapes[1], RED)), with_it.on(negative), 3.0)
    zero = out(0.0)
    assert relative(zero, run(plain, EULER, sigmas, noise)) < 1e-5 and relative(out(0.4), zero) > 0.005


@pytest.mark.parametrize("keep", [0.0, 0.8])
def test_what_is_captured_is_the_predictions_not_pags_own_call(shapes, keep):
    """At the first level it is what it would be without."""
    noise, conds = noise_of(SHAPE), (encode(shapes[1], RED), encode(shapes[1], ""))
    with_it, plain = (
        captured(model, *conds, noise, sigmas_of(shapes[0], 3)[[0, -1]], (keep, keep))[1]
        for model in (companion(shapes, "PAG").model, shapes[0])
    )
    for grid in plain.maps:
        torch.testing.assert_close(with_it.maps[grid], plain.maps[grid], rtol=0, atol=1e-6)
    assert with_it.terms.keys() == plain.terms.keys()
    for place, term in plain.terms.items():
        torch.testing.assert_close(
            (with_it.terms[place].q, with_it.terms[place].k), (term.q, term.k), rtol=0, atol=1e-4
        )


def test_the_local_blend_looks_at_the_prediction_not_at_pags_own_call(shapes, monkeypatch):
    added, edit = [], SteerPromptEdit.execute(shapes[1], RED, GREEN, "auto", "").args
    change = SteerLocalBlend.execute(edit[2], "circle", "circle", 0.3).args[0]
    add = prompt_to_prompt_run.BlendMask.add
    monkeypatch.setattr(prompt_to_prompt_run.BlendMask, "add", lambda *args: (added.append(args[1]), add(*args)))
    for model in (shapes[0], companion(shapes, "PAG").model):
        guider = SteerPromptToPromptGuider.execute(model, *edit[:2], encode(shapes[1], ""), 3.0, change, 0.8, 0.4)[0]
        run(guider, EULER, sigmas_of(shapes[0], 3)[[0, -1]], noise_of((1, 4, 16, 16)))
    assert len(added) == 2 * 3 and all(map(torch.allclose, added[: len(added) // 2], added[len(added) // 2 :]))


def watched(model):
    """A clone with a patch on attention that does nothing, and what the rows of its calls are said to be."""
    kinds = set()

    def patch(q, k, v, extra_options):
        kinds.add(tuple(extra_options["cond_or_uncond"]))
        return q, k, v

    model = model.clone()
    model.set_model_attn1_patch(patch)
    return model, kinds


def test_patches_can_tell_positive_from_negative(shapes, pictured):
    """By its place in the call, 0 and 1: IPAdapter gives each its own tokens."""
    sigmas, (text, latent) = sigmas_of(shapes[0], 20)[17:], pictured
    *edit, change = SteerPromptEdit.execute(shapes[1], text, text, "auto", "").args
    negative, (model, kinds) = encode(shapes[1], ""), watched(shapes[0])
    SteerDiffEditMask.execute(model, encode(shapes[1], RED), encode(shapes[1], GREEN), latent, 0.5, 2, 0.5, 0)
    assert kinds == {(0,)}
    source = host_guider(shapes[0], edit[0], negative, 1.0)
    kept, noise, inversion = SteerDDIMInversion.execute(source, sigmas, latent, 0, 1e-4, False).args
    model, kinds = watched(shapes[0])
    guider = SteerPromptToPromptGuider.execute(model, *edit, negative, 3.0, change, 0.8, 0.4, None, inversion)[0]
    run(guider, EULER, sigmas, noise.generate_noise(kept), kept["samples"])
    assert kinds == {(0,), (1,)}
    model, kinds = watched(shapes[0])
    SteerNullText.execute(model, edit[0], negative, 3.0, inversion, 2, 0.01, 0.0)
    assert kinds == {(0,), (1,)}


def at_once(model, positive, negative, cfg):
    """One prediction, in the model's own space: cfg 1 is the positive's, 0 the negative's."""
    out = run(host_guider(model, positive, negative, cfg), EULER, ONE_STEP, noise_of(SHAPE))
    return model.model.process_latent_in(out)


def sag_by_hand(shapes, denoised, empty, scale):
    """Self-attention guidance, of its parts (arXiv:2210.00939): what blurring where attention is high takes away."""
    scores, plain = [], shapes[0].clone()
    plain.set_model_attn1_replace(
        lambda q, k, v, options: (found := nodes_sag.attention_basic_with_sim(q, k, v, options["n_heads"]))
        and scores.append(found[1])
        or found[0],
        "middle", 0, 0,
    )  # fmt: skip
    uncond = at_once(plain, empty, empty, 1.0)
    degraded = nodes_sag.create_blur_map(uncond, scores[0].cpu(), 2.0, 1.0)
    noise = (degraded + 2.0 * noise_of(SHAPE) - uncond) / 2.0
    sag = run(host_guider(shapes[0], empty, empty, 1.0), EULER, ONE_STEP, noise)
    return denoised + scale * (degraded - shapes[0].model.process_latent_in(sag))


@pytest.mark.parametrize("name", some(COMPANIONS, "area", "PAG", "SAG"))
def test_three_terms_by_hand(shapes, name):
    """`D0 + cfg (D+ - D0) - s (D- - D0)`, of predictions made one by one, then what PAG or SAG add."""
    model, positive, negative = with_companion(shapes, name, negative=GREEN)
    empty = with_companion(shapes, name)[2]
    steer = steer_guider(model, positive, negative, 3.0, 0.5, empty)
    ours = model.model.process_latent_in(run(steer, EULER, ONE_STEP, noise_of(SHAPE)))

    def alone(cfg, text):  # made anew, as the host loses count of keyframes between runs at the same level
        model, *conds = with_companion(shapes, name, negative=text)
        return at_once(shapes[0] if name in GUIDANCE else model, *conds, cfg)

    of_positive, of_negative, of_empty = alone(1.0, ""), alone(0.0, GREEN), alone(0.0, "")
    expected = of_empty + 3.0 * (of_positive - of_empty) - 0.5 * (of_negative - of_empty)
    if name == "PAG":
        perturbed = shapes[0].clone()
        perturbed.set_model_attn1_replace(lambda q, k, v, options: v, "middle", 0)
        expected = expected + 2.0 * (of_positive - at_once(perturbed, positive, empty, 1.0))
    if name == "SAG":
        expected = sag_by_hand(shapes, expected, empty, 0.5)
    assert relative(ours, expected) < 1e-5


@pytest.fixture(scope="module")
def other(shapes):
    """Another model, for the host's guider of two."""
    with torch.inference_mode():
        return nodes.LoraLoaderModelOnly().load_lora_model_only(stock.load()[0], LORA, 1.0)[0]


@pytest.mark.parametrize("name", some(GUIDERS, "PerpNegGuider", "DualModelGuider"))
def test_other_guiders_of_the_host(shapes, other, pictured, name):
    """Samplers give what euler gives, inversion comes back, capture and a gradient guider at 0 change no bit."""
    if name == "DualModelGuider" and not hasattr(nodes_custom_sampler, "Guider_DualModel"):
        pytest.skip("this host has no DualModelGuider")
    sigmas, noise, everything = sigmas_of(shapes[0], 3), noise_of(SHAPE), torch.ones(1, 1, 8, 8)

    def make(text=RED, cfg=3.0):
        texts = (encode(shapes[1], each) for each in (text, GREEN, ""))
        return guider_of(shapes, name, *texts, cfg, other)

    plain, known = run(make(), EULER, sigmas, noise), noise_of(SHAPE, 5)
    repaint, blended = SteerRePaintSampler.execute(1, 1, 0.0)[0], SteerBlendedSampler.execute(EULER, 0)[0]
    assert relative(run(make(), ddim(), sigmas, noise), plain) < 3e-5
    for sampler in (repaint, SteerLangevinSampler.execute(1, 0.5)[0], blended):
        assert relative(run(make(), sampler, sigmas, noise, known, everything), plain) < 3e-5
    check_slope(shapes, make)
    latent, recording = SteerCaptureAttention.execute(Noise(noise), make(), EULER, sigmas, {"samples": 0 * noise}).args
    assert torch.equal(latent["samples"], plain) and recording.maps.keys() == {(8, 8), (4, 4)}
    low, near = sigmas_of(shapes[0], 20)[16:], make(pictured[0], 1.2)
    error, inversion, _ = inverted(near, pictured, low)
    assert error(near, ddim()) < 2e-3 < error(make(GREEN, 1.2), ddim())
    assert error(near, SteerTrajectoryBlendSampler.execute(EULER, inversion)[0], hole(height=8, width=8)) < 2e-3


@pytest.mark.parametrize("name", some(GUIDERS, "DualCFGGuider", "DualCFGGuider nested", "PerpNeg"))
def test_injected_and_painted_under_other_guiders(shapes, other, name):
    """A run's own attention put into it, and weight 0, change nothing; another prompt's, and more weight, do."""
    if name == "DualModelGuider" and not hasattr(nodes_custom_sampler, "Guider_DualModel"):
        pytest.skip("this host has no DualModelGuider")
    sigmas, noise, empty = sigmas_of(shapes[0], 3), noise_of(SHAPE), encode(shapes[1], "")

    def out(model, positive):
        guider = guider_of((model, *shapes[1:]), name, positive, empty, empty, 3.0, other)
        return run(guider, EULER, sigmas, noise)

    plain = {text: out(shapes[0], encode(shapes[1], text)) for text in (RED, GREEN)}
    guider = guider_of(shapes, name, encode(shapes[1], RED), empty, empty, 3.0, other)
    attention = SteerCaptureAttention.execute(Noise(noise), guider, EULER, sigmas, {"samples": 0 * noise}, 0.8, 0.4)[1]
    for text, same in ((RED, True), (GREEN, False)):
        _, target, edit = SteerPromptEdit.execute(shapes[1], RED, text, "auto", "").args
        injected = out(SteerInjectAttention.execute(shapes[0], attention, edit, 0.8, 0.4)[0], target)
        assert (relative(injected, plain[text]) < 1e-4) == same
    regions = SteerRegion.execute(left_half(), "circle", 1.0)[0]
    for weight, same in ((0.0, True), (0.4, False)):
        painted = out(*SteerPaintWithWords.execute(shapes[0], shapes[1], RED, regions, weight).args)
        assert (relative(painted, plain[RED]) < 1e-5) == same


class TestDifferentialDiffusion:
    @pytest.fixture
    def given(self, shapes):
        """The patched model, a mask with grey, and a latent."""
        mask = torch.linspace(0, 1, 8).expand(1, 1, 8, 8)
        return of_host(DifferentialDiffusion, shapes[0], 1.0), mask, noise_of(SHAPE, 5)

    def test_samplers_and_guiders(self, shapes, given):
        model, mask, known = given
        sigmas, noise, conds = sigmas_of(shapes[0], 3), noise_of(SHAPE), (encode(shapes[1], RED), encode(shapes[1], ""))
        expected = run(host_guider(model, *conds, 3.0), EULER, sigmas, noise, known, mask)
        assert relative(expected, run(host_guider(shapes[0], *conds, 3.0), EULER, sigmas, noise, known, mask)) > 0.01
        assert relative(run(steer_guider(model, *conds), ddim(), sigmas, noise, known, mask), expected) < 1e-5
        scale_0 = run(guided(host_guider(model, *conds, 3.0), 0.0), EULER, sigmas, noise, known, mask)
        assert torch.equal(scale_0, expected)
        source, target, edit = SteerPromptEdit.execute(shapes[1], RED, GREEN, "auto", "").args
        both = SteerPromptToPromptGuider.execute(model, source, target, conds[1], 3.0, edit, 0.8, 0.4)[0]
        assert relative(run(both, EULER, sigmas, noise, known, mask)[:1], expected) < 1e-5

    def test_inversion_has_no_mask(self, shapes, given, pictured):
        sigmas, conds = sigmas_of(shapes[0], 3), (encode(shapes[1], pictured[0]), encode(shapes[1], ""))
        latents = [
            SteerDDIMInversion.execute(
                host_guider(model, *conds, 1.0), sigmas, {**pictured[1], "noise_mask": given[1]}, 0, 1e-4, False
            ).args[2].latents
            for model in (given[0], shapes[0])
        ]  # fmt: skip
        assert all(map(torch.equal, *latents))

    def test_attention(self, shapes, given):
        """Captured, injected and painted as the host's run with the mask, and as Prompt-to-Prompt."""
        (model, mask, known), negative = given, encode(shapes[1], "")
        sigmas, noise = sigmas_of(shapes[0], 3), noise_of(SHAPE)
        source, target, edit = SteerPromptEdit.execute(shapes[1], RED, GREEN, "auto", "").args

        def out(model, positive):
            return run(host_guider(model, positive, negative, 3.0), EULER, sigmas, noise, known, mask)

        latent, attention = SteerCaptureAttention.execute(
            Noise(noise), host_guider(model, source, negative, 3.0), EULER, sigmas,
            {"samples": known, "noise_mask": mask}, 0.8, 0.4,
        ).args  # fmt: skip
        assert torch.equal(latent["samples"], out(model, source))
        both = SteerPromptToPromptGuider.execute(model, source, target, negative, 3.0, edit, 0.8, 0.4)[0]
        second = run(both, EULER, sigmas, noise, known, mask).chunk(2)[1]
        injected = out(SteerInjectAttention.execute(model, attention, edit, 0.8, 0.4)[0], target)
        assert relative(injected, second) < 1e-4 and relative(injected, out(model, target)) > 1e-3
        regions = SteerRegion.execute(left_half(), "circle", 1.0)[0]
        for weight, same in ((0.0, True), (0.4, False)):
            painted = out(*SteerPaintWithWords.execute(model, shapes[1], RED, regions, weight).args)
            assert (relative(painted, out(model, encode(shapes[1], RED))) < 1e-5) == same

    def test_null_text_and_diffedit_are_as_without(self, shapes, given, pictured):
        """It acts on the mask of a sampler only, and they have none of that kind."""
        conds, sigmas = (encode(shapes[1], pictured[0]), encode(shapes[1], "")), sigmas_of(shapes[0], 20)[17:]
        inversion = inverted(host_guider(shapes[0], *conds, 1.0), pictured, sigmas)[1]
        latent, target = {**pictured[1], "noise_mask": given[1]}, encode(shapes[1], GREEN)
        negatives, heats = [], []
        for model in (given[0], shapes[0]):
            negatives.append(SteerNullText.execute(model, *conds, 5.0, inversion, 2, 0.05, 0.0)[0])
            heats.append(SteerDiffEditMask.execute(model, conds[0], target, latent, 0.5, 2, 0.5, 0)[1])
        assert all(again(a[0], b[0]) for a, b in zip(*negatives, strict=True)) and torch.equal(*heats)

    def test_what_keeps_the_masked_out_part_itself_refuses(self, shapes, given, pictured):
        conds, sigmas = (encode(shapes[1], pictured[0]), encode(shapes[1], "")), sigmas_of(shapes[0], 3)
        inversion = inverted(host_guider(shapes[0], *conds, 1.0), pictured, sigmas)[1]
        model, rows = counted(given[0])
        for sampler in (
            SteerRePaintSampler.execute(1, 1, 0.0)[0],
            SteerLangevinSampler.execute(2, 0.5)[0],
            SteerBlendedSampler.execute(EULER, 0)[0],
            SteerTrajectoryBlendSampler.execute(EULER, inversion)[0],
        ):
            with pytest.raises(ValueError, match="Steer.*Sampler: the model changes the mask.*Differential Diffusion"):
                run(host_guider(model, *conds, 3.0), sampler, sigmas, noise_of(SHAPE), pictured[1]["samples"], given[1])
        assert not rows


def test_keyframes_stand_where_they_stand_on_the_way_down(shapes):
    """The host's own only go forward; inversion goes up, and RePaint up again."""
    model, seen = closed_form(shapes[0], EPS), []
    inner = model.model_options["model_function_wrapper"]
    hooks = lora_hooks(1.0, ((1.5, 0.0), (0.5, 0.4), (0.2, 0.6), (1.0, 0.8)))
    positive = node_helpers.conditioning_set_values(mean_conditioning(1), {"hooks": hooks})

    def noting(apply_model, args):
        seen.append((float(args["timestep"][0]), hooks.hooks[0].hook_keyframe.strength))
        return inner(apply_model, args)

    model.set_model_unet_function_wrapper(noting)
    guider, sigmas, noise = (
        host_guider(model, positive, mean_conditioning(0), 1.0),
        sigmas_of(model, 12),
        noise_of(SHAPE),
    )
    run(guider, EULER, sigmas, noise)
    expected = dict(seen)
    assert len(set(expected.values())) == 4
    repaint = SteerRePaintSampler.execute(3, 4, 1.0)[0]
    for start in (0, 5):
        run(guider, EULER, sigmas[start:], noise)
        expected = dict(seen[-12 + start :])
        for go in (
            lambda part: SteerDDIMInversion.execute(guider, part, {"samples": noise}, 2, 1e-4, False),
            lambda part: run(guider, EULER, part, noise),
            lambda part: run(guider, repaint, part, noise, noise, hole(height=8, width=8)),
        ):
            seen.clear()
            go(sigmas[start:])
            assert dict(seen) == expected and len(set(seen)) == 12 - start
    assert len(seen) > 12


@pytest.mark.parametrize("what", ["CFG", "gradient", "RePaint", "Langevin", "blended", "inversion"])
def test_each_cond_acts_inside_its_mask(shapes, what):
    """Closed form: left of the middle it is one run, right of it another."""
    model, sides = closed_form(shapes[0], EPS), torch.ones(1, 1, 1, 8)
    sides[..., 4:] = 0.0
    left = of_host(nodes.ConditioningSetMask, mean_conditioning(1), left_half(), "default", 1.0)
    right = of_host(nodes.ConditioningSetMask, mean_conditioning(-0.5), 1.0 - left_half(), "default", 1.0)
    sigmas, noise, known = sigmas_of(model, 6), noise_of(SHAPE), noise_of(SHAPE, 5)

    def out(positive):
        guider = steer_guider(model, positive, mean_conditioning(0), 2.0)
        if what == "gradient":
            return run(guided(guider, 0.5), ddim(), sigmas, noise)
        if what == "RePaint":
            return run(guider, SteerRePaintSampler.execute(2, 2, 1.0)[0], sigmas, noise, known, hole(1, 8, 8))
        if what == "Langevin":
            return run(guider, SteerLangevinSampler.execute(2, 0.5)[0], sigmas, noise, known, hole(1, 8, 8))
        if what == "blended":
            return run(guider, SteerBlendedSampler.execute(ddim(1.0), 0)[0], sigmas, noise, known, hole(1, 8, 8))
        if what == "inversion":
            return SteerDDIMInversion.execute(guider, sigmas, {"samples": known}, 0, 1e-4, False).args[2].latents[0]
        return run(guider, ddim(), sigmas, noise)

    ends = out(mean_conditioning(1)), out(mean_conditioning(-0.5))
    assert relative(out([*left, *right]), sides * ends[0] + (1 - sides) * ends[1]) < 1e-5
    assert relative(*ends) > 0.05


def test_areas_where_attention_is_of_the_whole_picture_are_said(shapes):
    """Before the first model call."""
    source, target, change = SteerPromptEdit.execute(shapes[1], RED, GREEN, "auto", "").args
    sigmas, noise, negative = sigmas_of(shapes[0], 3), noise_of((1, 4, 16, 16)), encode(shapes[1], "")
    attention = captured(shapes[0], source, negative, noise, sigmas)[1]
    model, rows = counted(shapes[0])
    source, target = (of_host(nodes.ConditioningSetArea, each, 32, 64, 32, 0, 1.0) for each in (source, target))
    blend = SteerLocalBlend.execute(change, "circle", "circle", 0.3).args[0]
    injected = SteerInjectAttention.execute(model, attention, change, 0.8, 0.4)[0]
    for guider, message in (
        (SteerPromptToPromptGuider.execute(model, source, target, negative, 3.0, blend, 0.8, 0.4)[0],
         "SteerPromptToPromptGuider: source and target have an area.*remove the area"),
        (host_guider(injected, target, negative, 3.0), "SteerInjectAttention: the edit's target has an area"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            run(guider, EULER, sigmas, noise)
    assert not rows


def test_of_combined_prompts_only_the_edits_own_is_edited(shapes):
    """Here on the right there is another prompt, and one step: nothing changes there."""
    source, target, change = SteerPromptEdit.execute(shapes[1], RED, RED, "auto", "circle: 4").args
    source, target = map(companion(shapes, "mask").on, (source, target))
    guider = SteerPromptToPromptGuider.execute(shapes[0], source, target, encode(shapes[1], ""), 3.0, change, 1.0, 0.0)[
        0
    ]
    first, second = run(guider, EULER, sigmas_of(shapes[0], 3)[[0, -1]], noise_of(SHAPE)).chunk(2)
    assert relative(second[..., 4:], first[..., 4:]) < 1e-5 and relative(second[..., :4], first[..., :4]) > 0.01
