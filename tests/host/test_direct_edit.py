"""Direct editing on the real host: exact where it can be, the same in one call as in two, and what it refuses."""

from itertools import pairwise
from types import SimpleNamespace

import comfy.samplers
import comfy.supported_models
import node_helpers
import pytest
import torch
from steer.lab.comfy.random_models import tiny_model
from steer.lab.comfy.runs import Noise, counted, encode, host_guider, noise_of, run, sigmas_of
from steer.nodes.attention_maps import SteerCaptureAttention
from steer.nodes.ddim import SteerDDIMSampler
from steer.nodes.direct_edit import SteerDirectEditSampler, SteerEditGuider
from steer.nodes.guidance import SteerCFGGuider
from steer.nodes.inversion import SteerDDIMInversion
from steer.nodes.prompt_to_prompt import SteerPromptEdit, SteerPromptToPromptGuider
from steer.nodes.sdedit import SteerSDEditSigmas
from steer.samplers.core import SampleNoise
from steer.tests import checks, oracles
from steer.tests.companions import with_cfg_override
from steer.tests.host_models import (
    EPS,
    FLOW,
    V,
    closed_form,
    for_shape,
    hole,
    mean_conditioning,
    relative,
    with_law,
    with_lora,
)

RED, GREEN = "a red circle on a blue background", "a green circle on a blue background"
PROMPTS = 0.2, 0.3
"""The means of the two conditionings of the wavy model."""


def sampler(renewal=0.0, pull=0.0, average=1):
    return SteerDirectEditSampler.execute(renewal, pull, average)[0]


def guider(model, source, target, source_cfg=1.0, target_cfg=1.0, **negatives):
    return SteerEditGuider.execute(model, source, target, source_cfg, target_cfg, **negatives)[0]


def partial_sigmas(model, steps=8, strength=0.8):
    return SteerSDEditSigmas.execute(model, "normal", steps, strength)[0]


@pytest.mark.parametrize("law", [EPS, V, FLOW])
@pytest.mark.parametrize("shape", [(2, 4, 12, 16), (1, 4, 3, 12, 16)])
def test_the_same_prompt_gives_the_source(shapes, monkeypatch, law, shape):
    model = for_shape(monkeypatch, closed_form(shapes[0], law), shape)
    one, latent = mean_conditioning(2), noise_of(shape, 1)
    out = run(guider(model, one, one), sampler(), sigmas_of(model, 6), torch.zeros(shape), latent)
    assert out.shape == latent.shape and relative(out, latent) < 1e-5


@pytest.mark.parametrize("law", [EPS, V, FLOW])
def test_an_edit_between_two_means_moves_by_their_difference(shapes, law):
    """Equal variances: x + (mu_target - mu_source)(1 - prod kept), the recurrence in closed form."""
    model = closed_form(shapes[0], law)
    source, target, latent = mean_conditioning(1), mean_conditioning(3), noise_of((1, 4, 8, 8), 1)
    sigmas = partial_sigmas(model, 10)
    out = run(guider(model, source, target), sampler(), sigmas, torch.zeros_like(latent), latent)
    first = model.model.process_latent_in(out) - model.model.process_latent_in(latent)
    again = run(guider(model, source, target), sampler(), sigmas, torch.zeros_like(latent), latent, seed=9)
    assert first.std() < 1e-3 and 0.5 < float(first.mean()) < 2.01
    # no variance between noises
    assert relative(again, out) < 1e-3


def test_one_call_where_the_text_alone_differs(shapes):
    """And two for what differs in more; the pictures are the same."""
    source, target, empty = (encode(shapes[1], text) for text in (RED, GREEN, ""))
    latent, rows_wanted = noise_of((1, 4, 16, 16), 2), [2] * 3
    model, rows = counted(shapes[0])
    sigmas = partial_sigmas(model, 3)
    together = run(guider(model, source, target), sampler(), sigmas, torch.zeros_like(latent), latent)
    assert rows == rows_wanted
    model, rows = counted(shapes[0])
    longer = encode(shapes[1], GREEN + ", " * 80)  # two chunks of tokens
    run(guider(model, source, longer), sampler(), sigmas, torch.zeros_like(latent), latent)
    assert rows == [1, 1] * 3
    other = node_helpers.conditioning_set_values(target, {"guidance": 3.0})
    model, rows = counted(shapes[0])
    apart = run(guider(model, source, other), sampler(), sigmas, torch.zeros_like(latent), latent)
    assert rows == [1, 1] * 3 and relative(apart, together) < 1e-4
    model, rows = counted(shapes[0])
    both = guider(model, source, target, 3.0, 5.0, negative=empty)
    guided = run(both, sampler(), sigmas, torch.zeros_like(latent), latent)
    assert sum(rows) == 4 * 3 and len(rows) <= 6
    both = guider(shapes[0], source, other, 3.0, 5.0, negative=empty)
    assert relative(run(both, sampler(), sigmas, torch.zeros_like(latent), latent), guided) < 1e-4


@pytest.mark.parametrize("source_cfg, target_cfg", [(1.0, 5.0), (3.0, 5.0), (5.0, 5.0), (3.0, 1.0)])
def test_each_prompt_is_guided_at_its_own_scale(shapes, source_cfg, target_cfg):
    """The pair's estimates are those of the host's two guiders."""
    conds = [encode(shapes[1], text) for text in (RED, GREEN, "")]
    level = float(partial_sigmas(shapes[0], 1)[0])
    oracles.check_edit_guider(lambda: (shapes[0], *conds), noise_of((1, 4, 16, 16), 2), level, source_cfg, target_cfg)


def test_a_lora_in_the_weights(shapes):
    conds = [encode(shapes[1], text) for text in (RED, GREEN, "")]
    oracles.check_edit_guider(lambda: (with_lora(shapes[0]), *conds), noise_of((1, 4, 16, 16), 2), 2.0, 1.0, 5.0)


def wavy(model, law):
    """A clone whose estimate is no straight line in x, and follows the mean of the conditioning."""
    model = with_law(model, law)

    def wrapper(apply_model, args):
        x, sigma = args["input"], args["timestep"].reshape(-1, *[1] * (args["input"].ndim - 1))
        return wavy_estimate(x, sigma, args["c"]["c_crossattn"].mean((1, 2)).reshape(sigma.shape), law)

    model.set_model_unet_function_wrapper(wrapper)
    return model


def wavy_estimate(x, sigma, turn, law):
    alpha = 1.0 - sigma if law == FLOW else 1.0
    clean, ratio = x / alpha, sigma / alpha
    return (clean + ratio * torch.sin(2 * clean + turn)) / (1 + ratio**2) + turn


def flow_align(velocity, source, times, noise, omega, zeta):
    """FlowAlign's Algorithm 1, as its authors' code has it: velocity(x, t, prompt) of a flow model."""
    z, (source_prompt, target_prompt) = source, PROMPTS
    for t, t_next in pairwise(times):
        q = (1 - t) * source + t * noise()
        p = z + q - source
        against = velocity(p, t, source_prompt)
        v_p = against + omega * (velocity(p, t, target_prompt) - against)
        v_q = velocity(q, t, source_prompt)
        z = z + (t_next - t) * (v_p - v_q) + zeta * ((q - t * v_q) - (p - t * v_p))
    return z


@pytest.mark.parametrize("law", [EPS, FLOW])
def test_flow_aligns_guidance_by_wiring_is_its_recurrence(shapes, law):
    """The source's prompt as `negative`, source_cfg 1: FlowAlign's Algorithm 1, in three rows a step.

    A model of noise is one of flow at t = sigma / (1 + sigma), x there over 1 + sigma. Steps of one length, where a
    pull per time is the authors' constant of each step.
    """
    times, shape = torch.linspace(0.9, 0.0, 13, dtype=torch.float64), (2, 4, 8, 8)
    sigmas = (times if law == FLOW else times / (1 - times)).float()
    model, latent, (source, target) = wavy(shapes[0], law), noise_of(shape, 1), map(mean_conditioning, PROMPTS)
    pair = guider(model, source, target, 1.0, 7.5, negative=source)
    length = float(times[0] - times[1])
    out = run(pair, sampler(pull=0.01 / length), sigmas, torch.zeros(shape), latent)

    def velocity(x, t, prompt):
        level, scale = (t, 1.0) if law == FLOW else (t / (1 - t), 1 / (1 - t))
        return (x - wavy_estimate(x * scale, level, prompt, law)) / t

    inside = model.model.process_latent_in(latent)
    drawn = SampleNoise(3, "edit", torch.zeros(shape), inside)
    expected = flow_align(velocity, inside.double(), times, lambda: drawn(inside).double(), 7.5, 0.01)
    expected = model.model.process_latent_out(expected)
    error = (out - expected).square().mean() / expected.square().mean()
    assert float(error.sqrt()) < 1e-6  # the host's is in float32
    # and all of it is needed: the pull, and the source's prompt in the place of the negative
    for other in (sampler(), sampler(pull=0.05 / length)):
        assert relative(run(pair, other, sigmas, torch.zeros(shape), latent), expected) > 1e-2
    unlike = guider(model, source, target, 1.0, 7.5, negative=mean_conditioning(0.0))
    assert relative(run(unlike, sampler(pull=0.01 / length), sigmas, torch.zeros(shape), latent), expected) > 1e-2


def test_flow_aligns_guidance_takes_three_rows_a_step(shapes):
    model, rows = counted(shapes[0])
    source, target = (encode(shapes[1], text) for text in (RED, GREEN))
    latent = noise_of((1, 4, 16, 16), 2)
    pair = guider(model, source, target, 1.0, 7.5, negative=source)
    run(pair, sampler(pull=0.33), partial_sigmas(model, 3), torch.zeros_like(latent), latent)
    assert sum(rows) == 3 * 3


@pytest.mark.parametrize("law", [EPS, FLOW])
def test_outside_the_mask_the_source_to_the_last_bit(shapes, law):
    model = closed_form(shapes[0], law)
    latent, mask = noise_of((2, 4, 16, 16), 1), hole(2)
    out = run(guider(model, mean_conditioning(1), mean_conditioning(3)), sampler(), partial_sigmas(model),
              noise_of(latent.shape), latent, mask)  # fmt: skip
    plain = run(guider(model, mean_conditioning(1), mean_conditioning(1)), sampler(), partial_sigmas(model),
                noise_of(latent.shape), latent)  # fmt: skip
    kept = (mask == 0).expand_as(out)
    assert torch.equal(out[kept], plain[kept]) and (out[~kept] - latent[~kept]).abs().min() > 0.1


def test_an_empty_mask_gives_the_source(shapes):
    model, rows = counted(shapes[0])
    latent = noise_of((1, 4, 16, 16), 1)
    pair = guider(model, encode(shapes[1], RED), encode(shapes[1], GREEN))
    out = run(pair, sampler(), partial_sigmas(model), noise_of(latent.shape), latent, torch.zeros(1, 1, 16, 16))
    assert relative(out, latent) < 1e-6 and not rows


def test_a_batch_is_its_pictures_alone(shapes):
    latent, mask = noise_of((2, 4, 16, 16), 1), hole(2)
    pair = guider(shapes[0], encode(shapes[1], RED), encode(shapes[1], GREEN), 1.0, 5.0, negative=encode(shapes[1], ""))
    sigmas = partial_sigmas(shapes[0], 4)
    zero = torch.zeros_like(latent)
    both = run(pair, sampler(), sigmas, zero, latent, mask)
    for index in range(2):
        part = slice(index, index + 1)
        one = run(pair, sampler(), sigmas, zero[part], latent[part], mask[part])
        assert relative(both[part], one) < 1e-4
    assert torch.equal(both, run(pair, sampler(), sigmas, zero, latent, mask))


@pytest.mark.parametrize("law", [EPS, FLOW])
def test_a_run_that_stops_above_0_can_be_gone_on_from(shapes, law):
    """With the target alone: the latent that comes out is the edit so far, at the last sigma's noise."""
    model, target = closed_form(shapes[0], law), mean_conditioning(3)
    latent, sigmas = noise_of((1, 4, 8, 8), 1), partial_sigmas(model, 8)
    half = run(guider(model, mean_conditioning(1), target), sampler(), sigmas[:5], torch.zeros_like(latent), latent)
    end = run(host_guider(model, target, target, 1.0), SteerDDIMSampler.execute(0.0)[0], sigmas[4:],
              torch.zeros_like(half), half)  # fmt: skip
    assert torch.isfinite(end).all()
    level = float(sigmas[4])
    inside = model.model.process_latent_in(half)
    noised = (1 - level) * inside if law == FLOW else inside
    assert noised.std() > 0.5 * level and (model.model.process_latent_in(end).mean() - 3).abs() < 1.0


def test_previews_and_the_denoised_output_are_of_the_edit(shapes):
    latent, shown = noise_of((1, 4, 16, 16), 1), []
    pair = guider(shapes[0], encode(shapes[1], RED), encode(shapes[1], GREEN))
    out = run(pair, sampler(), partial_sigmas(shapes[0], 3), torch.zeros_like(latent), latent,
              callback=lambda step, denoised, x, total: shown.append((step, denoised, total)))  # fmt: skip
    assert [(step, total) for step, _, total in shown] == [(0, 3), (1, 3), (2, 3)]
    assert all(denoised.shape == latent.shape for _, denoised, _ in shown)
    assert relative(shapes[0].model.process_latent_out(shown[-1][1].cpu()), out) < 1e-5


def test_prompt_to_prompt_under_the_sampler_gives_the_source_and_its_edit(shapes):
    source, target, edit = SteerPromptEdit.execute(shapes[1], RED, GREEN, "auto", "").args[:3]
    pair = SteerPromptToPromptGuider.execute(shapes[0], source, target, encode(shapes[1], ""), 1.0, edit, 0.8, 0.4)[0]
    latent = noise_of((1, 4, 16, 16), 2)
    out = run(pair, sampler(), partial_sigmas(shapes[0], 4), torch.zeros_like(latent), latent)
    assert len(out) == 2 and relative(out[:1], latent) < 1e-5 and relative(out[1:], latent) > 1e-3
    # without an edit of the attention it is the Edit Guider's
    free = SteerPromptToPromptGuider.execute(shapes[0], source, target, encode(shapes[1], ""), 1.0, edit, 0.0, 0.0)[0]
    sigmas, zero = partial_sigmas(shapes[0], 4), torch.zeros_like(latent)
    plain = run(guider(shapes[0], source, target), sampler(), sigmas, zero, latent)
    assert relative(run(free, sampler(), sigmas, zero, latent)[1:], plain) < 1e-4


@pytest.mark.parametrize("source_cfg, target_cfg, guided", [(1.0, 3.0, 1), (2.0, 1.0, 1), (2.0, 3.0, 2)])
def test_a_patch_on_guidance_sees_the_prompts_that_are_guided(shapes, source_cfg, target_cfg, guided):
    """At scale 1 there is no guidance to change, and the host would show it zeros for the negative's prediction."""
    model, seen = shapes[0].clone(), []
    model.set_model_sampler_pre_cfg_function(lambda args: seen.append(args["conds_out"][1]) or args["conds_out"])
    conds, latent = [encode(shapes[1], text) for text in (RED, GREEN, "")], noise_of((1, 4, 16, 16), 2)

    def edited(model):
        pair = guider(model, *conds[:2], source_cfg, target_cfg, negative=conds[2])
        return run(pair, sampler(), partial_sigmas(shapes[0], 3), torch.zeros_like(latent), latent)

    out = edited(model)
    assert len(seen) == 3 * guided and all(uncond.any() for uncond in seen)
    assert relative(out, edited(shapes[0])) < 1e-4


def test_a_patch_in_the_place_of_the_models_call_is_asked(shapes):
    """Skip Layer Guidance Simple asks the model itself, for what the host would."""
    model, seen = shapes[0].clone(), []

    def asked(args):
        seen.append(len(args["input"]))
        options = {k: v for k, v in args["model_options"].items() if k != "sampler_calc_cond_batch_function"}
        return comfy.samplers.calc_cond_batch(args["model"], args["conds"], args["input"], args["sigma"], options)

    model.set_model_sampler_calc_cond_batch_function(asked)
    conds, latent = [encode(shapes[1], text) for text in (RED, GREEN)], noise_of((1, 4, 16, 16), 2)
    given = sampler(), partial_sigmas(shapes[0], 3), torch.zeros_like(latent), latent
    out = run(guider(model, *conds), *given)
    assert seen == [1] * 6 and relative(out, run(guider(shapes[0], *conds), *given)) < 1e-4


@pytest.mark.parametrize("source_cfg", [1.0, 2.0])
def test_cfg_override_sets_the_targets_scale(shapes, source_cfg):
    model, (source, target, empty) = shapes[0], [encode(shapes[1], text) for text in (RED, GREEN, "")]
    latent, given = noise_of((1, 4, 16, 16), 2), (sampler(), partial_sigmas(shapes[0], 3))

    def edited(model, cfg):
        pair = guider(model, source, target, source_cfg, cfg, negative=empty)
        return run(pair, *given, torch.zeros_like(latent), latent)

    plain = edited(model, 3.0)
    assert torch.equal(edited(with_cfg_override(model, 3.0), 1.0), plain)
    assert relative(edited(model, 1.0), plain) > 1e-2


class TestRefuses:
    def test_cfg_override_without_a_negative(self, shapes):
        model, rows = counted(shapes[0])
        pair = guider(with_cfg_override(model, 3.0), *(encode(shapes[1], text) for text in (RED, GREEN)))
        latent = noise_of((1, 4, 16, 16), 2)
        with pytest.raises(ValueError, match="SteerEditGuider: a patch .* sets target_cfg to 3"):
            run(pair, sampler(), partial_sigmas(shapes[0], 3), torch.zeros_like(latent), latent)
        assert not rows

    def test_a_guider_of_one_prompt(self, shapes):
        one = SteerCFGGuider.execute(shapes[0], encode(shapes[1], RED), encode(shapes[1], ""), 5.0, 0.0, 1.0, 1.0)[0]
        for plain in (one, host_guider(shapes[0], encode(shapes[1], RED), encode(shapes[1], ""), 5.0)):
            with pytest.raises(ValueError, match="SteerDirectEditSampler: the guider is of one prompt"):
                run(plain, sampler(), partial_sigmas(shapes[0]), noise_of((1, 4, 16, 16)), noise_of((1, 4, 16, 16), 1))

    def test_a_sampler_that_draws_from_noise(self, shapes):
        pair = guider(shapes[0], encode(shapes[1], RED), encode(shapes[1], GREEN))
        with pytest.raises(ValueError, match="SteerEditGuider: .*connect SteerDirectEditSampler"):
            run(pair, SteerDDIMSampler.execute(0.0)[0], partial_sigmas(shapes[0]), noise_of((1, 4, 16, 16)))

    def test_inversion(self, shapes):
        pair = guider(shapes[0], encode(shapes[1], RED), encode(shapes[1], GREEN))
        with pytest.raises(ValueError, match="SteerEditGuider"):
            SteerDDIMInversion.execute(pair, partial_sigmas(shapes[0]), {"samples": noise_of((1, 4, 16, 16))}, 0, 1e-4)

    @pytest.mark.parametrize("scales, name", [((1.0, 5.0), "target_cfg"), ((2.0, 1.0), "source_cfg")])
    def test_a_scale_without_a_negative(self, shapes, scales, name):
        with pytest.raises(ValueError, match=f"SteerEditGuider: {name} is .*connect an empty prompt"):
            guider(shapes[0], encode(shapes[1], RED), encode(shapes[1], GREEN), *scales)

    def test_an_empty_latent(self, shapes):
        pair = guider(shapes[0], encode(shapes[1], RED), encode(shapes[1], GREEN))
        with pytest.raises(ValueError, match="SteerDirectEditSampler: latent_image is empty"):
            run(pair, sampler(), partial_sigmas(shapes[0]), noise_of((1, 4, 16, 16)))


def guider_on_family(family):
    conds, level = [*map(family.prompt, (oracles.SOURCE, oracles.TARGET, ""))], float(oracles.from_level(family, 1)[0])
    for scales in ((1.0, 1.0), (1.0, 3.0), (2.0, 3.0)):
        oracles.check_edit_guider(lambda: (family.model(), *conds), family.picture(), level, *scales)


def sampler_on_family(family):
    """The same prompt at the same scale gives the source, another does not; and outside a mask the source exactly."""
    model, source, target, empty = (family.model(), *map(family.prompt, (oracles.SOURCE, oracles.TARGET, "")))
    latent, sigmas, noise = family.picture(), oracles.from_level(family), oracles.noise_for(family)
    for scale in (1.0, 3.0):
        same = run(guider(model, source, source, scale, scale, negative=empty), sampler(), sigmas, noise, latent)
        assert relative(same, latent) < 1e-5
    pair = guider(model, source, target, 1.0, 3.0, negative=empty)
    assert relative(run(pair, sampler(), sigmas, noise, latent), latent) > 1e-4
    masked = run(pair, sampler(), sigmas, noise, latent, oracles.mask_of(family))
    kept, edited = oracles.outside(family, same), oracles.outside(family, masked)
    assert torch.equal(kept, edited) and not torch.equal(masked, same)


LUMINA = {"image_model": "lumina2", "patch_size": 2, "in_channels": 16, "dim": 64, "cap_feat_dim": 48, "n_layers": 2,
          "n_refiner_layers": 1, "qk_norm": True, "n_heads": 2, "n_kv_heads": 2, "axes_dims": [8, 12, 12],
          "axes_lens": [64, 64, 64]}  # fmt: skip


@pytest.mark.parametrize("holds", [guider_on_family, sampler_on_family])
def test_lumina_whose_prompts_have_the_length_of_their_text(holds):
    """What docs/families.md has no column for; Qwen-Image and Z-Image, which are alike in this, have one."""
    shape, model = (1, 16, 8, 8), tiny_model(comfy.supported_models.Lumina2, dict(LUMINA))
    lengths = {oracles.SOURCE: 5, oracles.TARGET: 7, "": 3}
    texts = {
        text: [[noise_of((1, length, 48), length), {"attention_mask": torch.ones(1, length, dtype=torch.long)}]]
        for text, length in lengths.items()
    }
    holds(SimpleNamespace(model=lambda: model, shape=shape, picture=lambda: noise_of(shape, 5), prompt=texts.get))


def check_guider(world, given, run, output):
    checks.run_and_check(run, guider=output[0], sampler=sampler(), keeps=lambda source: source)


def check_sampler(world, given, run, output):
    texts = world.usual["CONDITIONING"]
    pair = guider(world.usual["MODEL"]["shapes"], texts["prompt"], texts["target"], 1.0, 3.0, negative=texts["empty"])
    checks.run_and_check(run, guider=pair, sampler=output[0], keeps=lambda source: source)


ORACLE = {
    "SteerEditGuider": ("each prompt's estimate is that of the host's guider at its scale", guider_on_family),
    "SteerDirectEditSampler": (
        "the same prompt gives the source, outside a mask the source bit for bit",
        sampler_on_family,
    ),
}
CHECK = {
    "SteerEditGuider": (check_guider, ("noise", "sigmas", "latent_image")),
    "SteerDirectEditSampler": (check_sampler, ("noise", "sigmas", "latent_image")),
}
USUAL = {
    "SteerDirectEditSampler": {"average": (1, 2)},
}


def test_clips_keep_masks_of_their_own(shapes, monkeypatch):
    """The masks of several clips, which the host's guiders take for those of frames."""
    shape = (2, 4, 3, 12, 16)
    model = for_shape(monkeypatch, closed_form(shapes[0], FLOW), shape)
    pair, latent, zero = (
        guider(model, mean_conditioning(1), mean_conditioning(3)),
        noise_of(shape, 1),
        torch.zeros(shape),
    )
    mask, sigmas = hole(2, 12), partial_sigmas(model, 4)
    both = run(pair, sampler(), sigmas, zero, latent, mask)
    for index in range(2):
        part = slice(index, index + 1)
        assert relative(both[part], run(pair, sampler(), sigmas, zero[part], latent[part], mask[part])) < 1e-5


def test_an_inversion_beside_it_is_refused(shapes):
    """Its recorded latents are not those that the sampler noises afresh."""
    source, target, edit = SteerPromptEdit.execute(shapes[1], RED, GREEN, "auto", "").args[:3]
    sigmas, latent = partial_sigmas(shapes[0], 4), {"samples": noise_of((1, 4, 16, 16), 2)}
    plain = host_guider(shapes[0], source, encode(shapes[1], ""), 1.0)
    inverted, noise, inversion = SteerDDIMInversion.execute(plain, sigmas, latent, 0, 1e-4, False).args
    pair = SteerPromptToPromptGuider.execute(
        shapes[0], source, target, encode(shapes[1], ""), 1.0, edit, 0.8, 0.4, None, inversion
    )[0]
    with pytest.raises(ValueError, match="SteerPromptToPromptGuider: .*disconnect inversion"):
        run(pair, sampler(), sigmas, noise.generate_noise(inverted), inverted["samples"])


def test_its_attention_is_not_captured(shapes):
    noise, latent = Noise(torch.zeros(1, 4, 16, 16)), {"samples": noise_of((1, 4, 16, 16), 2)}
    model, rows = counted(shapes[0])
    pair = guider(model, encode(shapes[1], RED), encode(shapes[1], GREEN))
    with pytest.raises(ValueError, match="SteerCaptureAttention: the guider is SteerEditGuider.*connect Steer"):
        SteerCaptureAttention.execute(noise, pair, sampler(), partial_sigmas(shapes[0], 3), latent)
    assert not rows
