import comfy.model_management as management
import comfy.ops
import comfy.samplers
import pytest
import torch
from comfy_extras.nodes_pag import PerturbedAttentionGuidance
from comfy_extras.nodes_sag import SelfAttentionGuidance
from steer.lab.comfy.runs import counted, encode, host_guider, interrupted, noise_of, of_host, run, sigmas_of
from steer.nodes.ddim import SteerDDIMSampler
from steer.nodes.guidance import SteerCFGGuider
from steer.tests import checks, oracles
from steer.tests.companions import patched
from steer.tests.host_models import EPS, FLOW, V, closed_form, mean_conditioning, relative, with_law

TEXTS = ("a red circle on a blue background", "a green star on a white background")


def steer_guider(model, positive, negative, cfg=7.5, start=0.0, end=1.0, negative_scale=1.0, empty=None):
    return SteerCFGGuider.execute(model, positive, negative, cfg, start, end, negative_scale, empty)[0]


def ddim():
    return SteerDDIMSampler.execute(0.0)[0]


@pytest.fixture
def conds(shapes):
    return [encode(shapes[1], text) for text in TEXTS]


@pytest.mark.parametrize("name", ["euler", "euler_ancestral", "dpmpp_2m"])
def test_defaults_are_the_hosts_guider_bitwise(shapes, conds, name):
    sigmas, noise = sigmas_of(shapes[0], 6), noise_of((2, 4, 16, 16))
    sampler = comfy.samplers.sampler_object(name)
    expected = run(host_guider(shapes[0], *conds, 7.5), sampler, sigmas, noise)
    assert torch.equal(run(steer_guider(shapes[0], *conds), sampler, sigmas, noise), expected)


@pytest.mark.parametrize(
    "settings, rows",
    [
        ({}, 40),
        ({"end": 0.5}, 30),
        ({"start": 0.5}, 30),
        ({"cfg": 1.0}, 20),
        ({"cfg": 0.0}, 20),
        ({"start": 0.25, "end": 0.75}, 30),
    ],
)
def test_rows_the_model_sees(shapes, conds, settings, rows):
    model, seen = counted(shapes[0])
    run(steer_guider(model, *conds, **settings), ddim(), sigmas_of(model), noise_of((1, 4, 8, 8)))
    assert sum(seen) == rows


@pytest.mark.parametrize(
    "settings, rows",
    [
        ({"cfg": 5.0}, 60),
        ({"cfg": 5.0, "negative_scale": 0.0}, 40),
        ({"cfg": 2.0, "negative_scale": 1.0}, 40),
        ({"cfg": 1.0, "negative_scale": 0.0}, 20),
        ({"cfg": 5.0, "end": 0.5}, 40),
    ],
)
def test_rows_with_the_empty_conditioning(shapes, conds, settings, rows):
    model, seen = counted(shapes[0])
    guider = steer_guider(model, *conds, empty=encode(shapes[1], ""), **settings)
    run(guider, ddim(), sigmas_of(model), noise_of((1, 4, 8, 8)))
    assert sum(seen) == rows


def test_outside_the_interval_it_is_the_positive_alone(shapes, conds):
    """Guided for the first half only: the same as sampling the halves with cfg and without."""
    sigmas, noise = sigmas_of(shapes[0]), noise_of((1, 4, 8, 8))
    ours = run(steer_guider(shapes[0], *conds, end=0.5), ddim(), sigmas, noise)
    half = run(host_guider(shapes[0], *conds, 7.5), ddim(), sigmas[:11], noise)
    rest = run(host_guider(shapes[0], *conds, 1.0), ddim(), sigmas[10:], torch.zeros_like(noise), half)
    torch.testing.assert_close(ours, rest, rtol=1e-4, atol=1e-4)


def test_outside_the_interval_patches_on_guidance_have_nothing_to_change(shapes, conds):
    """APG makes guidance of the zeros that the host has for the negative's prediction at scale 1."""
    model, seen = shapes[0].clone(), []
    model.set_model_sampler_pre_cfg_function(lambda args: seen.append(args["conds_out"][1]) or args["conds_out"])
    run(steer_guider(model, *conds, end=0.5), ddim(), sigmas_of(model), noise_of((1, 4, 16, 16)))
    assert len(seen) == 10 and all(uncond.any() for uncond in seen)


@pytest.mark.parametrize("law", [EPS, V, FLOW])
@pytest.mark.parametrize("cfg, negative_scale", [(7.5, 1.0), (1.0, 0.5), (0.0, 2.0), (2.0, 1.0), (4.0, 0.0)])
def test_three_terms_are_the_closed_form(shapes, law, cfg, negative_scale):
    """All three Gaussians share a variance, so the guided estimate is that of the mixed mean."""
    model = closed_form(shapes[0], law)
    means = 1.0, -0.5, 0.25
    conds = [mean_conditioning(mean) for mean in means]
    guider = steer_guider(model, *conds[:2], cfg, negative_scale=negative_scale, empty=conds[2])
    mixed = means[2] + cfg * (means[0] - means[2]) - negative_scale * (means[1] - means[2])
    expected = host_guider(model, mean_conditioning(mixed), mean_conditioning(0), 1.0)
    sigmas, noise = sigmas_of(model, 6), noise_of((2, 4, 5, 5))
    a, b = (run(one, ddim(), sigmas, noise) for one in (guider, expected))
    assert relative(a, b) < 1e-6


@pytest.mark.parametrize("law", [EPS, FLOW])
def test_batch_equals_singles_and_repeats_bitwise(shapes, conds, law):
    model = with_law(shapes[0], law)
    guider = steer_guider(model, *conds, 4.0, end=0.6, empty=encode(shapes[1], ""))
    sigmas, noise = sigmas_of(model, 6), noise_of((2, 4, 16, 16))
    together = run(guider, ddim(), sigmas, noise)
    alone = torch.cat([run(guider, ddim(), sigmas, noise[i : i + 1]) for i in range(2)])
    assert relative(together, alone) < 1e-5
    assert torch.equal(together, run(guider, ddim(), sigmas, noise))


def test_an_interrupt_comes_before_the_next_call_inside_a_step_too(shapes, conds, monkeypatch):
    """The host looks for it between steps, and newer ones at each layer; heun calls twice in a step."""
    monkeypatch.setattr(comfy.ops, "run_every_op", lambda: None, raising=False)
    model, rows = interrupted(shapes[0], 2)
    with pytest.raises(management.InterruptProcessingException):
        run(
            steer_guider(model, *conds), comfy.samplers.sampler_object("heun"), sigmas_of(model, 4),
            noise_of((1, 4, 16, 16)), callback=lambda *_: management.throw_exception_if_processing_interrupted(),
        )  # fmt: skip
    assert len(rows) == 2


def test_post_cfg_patches_see_the_three_terms(shapes, conds):
    """A patch that reads predictions gets all of them, even one that weighs nothing."""
    seen = []

    def patch(args):
        seen.append((args["cond_denoised"].abs().sum() > 0, args["uncond_denoised"].abs().sum() > 0))
        return args["denoised"]

    model = shapes[0].clone()
    model.set_model_sampler_post_cfg_function(patch)
    noise, sigmas = noise_of((1, 4, 16, 16)), sigmas_of(model, 4)
    patched = run(steer_guider(model, *conds, 4.0, negative_scale=0.0, empty=conds[1]), ddim(), sigmas, noise)
    assert len(seen) == 4 and all(a and b for a, b in seen)
    plain = run(steer_guider(shapes[0], *conds, 4.0, negative_scale=0.0, empty=conds[1]), ddim(), sigmas, noise)
    torch.testing.assert_close(patched, plain, rtol=1e-4, atol=1e-4)


def test_a_patch_of_the_formula_is_in_the_way_of_three_terms(shapes, conds):
    model = shapes[0].clone()
    model.set_model_sampler_cfg_function(lambda args: args["cond"])
    with pytest.raises(ValueError, match="SteerCFGGuider.*RescaleCFG"):
        run(steer_guider(model, *conds, empty=conds[1]), ddim(), sigmas_of(model), noise_of((1, 4, 16, 16)))


@pytest.mark.parametrize("name", ["APG", "TCFG", "CFG-Zero*", "CFGNorm", "FreSca", "Mahiro", "Epsilon Scaling", "NAG",
                                  "PAG", "SAG", "latent operation", "other calls"])  # fmt: skip
@pytest.mark.parametrize("cfg", [3.0, 1.0])
def test_patches_get_the_empty_as_the_unconditional(shapes, conds, name, cfg):
    """With a negative that weighs nothing, or next to nothing, it is the host's guider with the empty as negative."""
    sampler, empty = comfy.samplers.sampler_object("euler"), encode(shapes[1], "")
    sigmas, noise = sigmas_of(shapes[0], 3), noise_of((1, 4, 8, 8))

    def out(guider):
        return run(guider, sampler, sigmas, noise)

    def model():  # made anew, as APG's momentum outlives a run
        return reading_predictions(shapes[0], name)

    expected = out(host_guider(model(), conds[0], empty, cfg))
    assert relative(out(steer_guider(model(), *conds, cfg, negative_scale=0.0, empty=empty)), expected) < 1e-5
    if cfg != 1.0:  # where the host leaves the negative out, with what patches make of that
        assert relative(out(steer_guider(model(), *conds, cfg, negative_scale=1e-6, empty=empty)), expected) < 1e-4


def reading_predictions(model, name):
    """A clone of the model with a patch that reads its predictions, or makes them."""
    if name in ("PAG", "SAG"):
        kind, *inputs = {"PAG": (PerturbedAttentionGuidance, 2.0), "SAG": (SelfAttentionGuidance, 0.5, 2.0)}[name]
        return of_host(kind, model, *inputs)
    model = model.clone()
    if name == "latent operation":  # as the host's LatentApplyOperationCFG, which counts what it gets

        def operate(args):
            first, *others = args["conds_out"]
            least = others[0] if len(others) == 1 else 0.0
            return [(first - least) / (1.0 + (first - least).abs()) + least, *others]

        model.set_model_sampler_pre_cfg_function(operate)
    elif name == "other calls":  # as the host's SkipLayerGuidanceDiTSimple, which takes two apart

        def calls(args):
            positive, negative = args["conds"]
            model, x, *given = (args[key] for key in ("model", "input", "sigma", "model_options"))
            first = comfy.samplers.calc_cond_batch(model, [positive, None], x, *given)[0]
            return [first, 0.9 * comfy.samplers.calc_cond_batch(model, [None, negative], x, *given)[1]]

        model.set_model_sampler_calc_cond_batch_function(calls)
    else:
        return patched(model, name)
    return model


def on_family(family):
    model, texts = family.model(), [family.prompt(text) for text in (oracles.SOURCE, oracles.TARGET, "")]
    ours = SteerCFGGuider.execute(model, texts[0], texts[2], 3.0, 0.0, 1.0, 1.0)[0]
    sigmas = sigmas_of(model, 4)
    expected = run(oracles.guider_of(family, 3.0), oracles.EULER, sigmas, oracles.noise_for(family))
    assert relative(run(ours, oracles.EULER, sigmas, oracles.noise_for(family)), expected) < 1e-5
    three = SteerCFGGuider.execute(model, *texts[:2], 3.0, 0.0, 1.0, 0.5, texts[2])[0]
    positive, negative, empty = (
        oracles.estimate(oracles.guider_of(family, text=text), family) for text in (oracles.SOURCE, oracles.TARGET, "")
    )
    expected = empty + 3.0 * (positive - empty) - 0.5 * (negative - empty)
    assert relative(oracles.estimate(three, family), expected) < 1e-4 and relative(expected, positive) > 1e-3


ORACLE = {
    "SteerCFGGuider": ("equals the host's CFG; three prompts give the formula of their single estimates", on_family),
}
CHECK = {
    "SteerCFGGuider": (checks.guider, checks.RUN),
}
