from dataclasses import replace
from itertools import pairwise

import comfy.conds
import comfy.model_management
import comfy.model_patcher
import comfy.sample
import comfy.sampler_helpers
import comfy.samplers
import node_helpers
import nodes
import pytest
import torch
from steer.lab.comfy.runs import counted, encode, host_guider, interrupted, noise_of, run, sampled, sigmas_of
from steer.lab.models import stock
from steer.lab.world.data import render, scene_of
from steer.lab.world.metrics import psnr
from steer.nodes.host.conditioning import windows
from steer.nodes.host.law import noise_law
from steer.nodes.null_text import SteerNullText
from steer.nodes.runs.null_text import Settings, report, with_branches
from steer.samplers.inversion import Inversion, spread
from steer.samplers.noise_law import VARIANCE_EXPLODING
from steer.samplers.null_text import InnerStep
from steer.tests import checks, oracles
from steer.tests.host_models import EPS, FLOW, ON_GPU, closed_form, mean_conditioning, relative

CAPTION = "a red circle on a blue background"
STEPS = 10


def levels_of(model, steps):
    return sigmas_of(model, steps, "ddim_uniform").tolist()


def inverted(model, positive, source, steps=STEPS, iterations=4):
    """Inversion at cfg 1 with each implicit step iterated, as an Inversion."""
    law = noise_law(model.get_model_object("model_sampling"))
    sigmas = levels_of(model, steps)
    guider, found = host_guider(model, positive, positive, 1.0), [model.model.process_latent_in(source)]

    class Up(comfy.samplers.Sampler):
        def sample(self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, *args):
            for low, high in pairwise(sigmas.flip(0).tolist()):
                x = y = found[-1].to(noise)
                for _ in range(iterations):
                    denoised = model_wrap(y, y.new_full((y.shape[0],), high), **extra_args)
                    y = x + (high - low) * (y - denoised) / high
                found.append(y)
            return latent_image

    run(guider, Up(), torch.tensor(sigmas), torch.zeros_like(source), source)
    latents = tuple(latent.float().cpu() for latent in reversed(found))
    return Inversion(tuple(sigmas), latents, law, type(model.model.latent_format).__name__, True)


@pytest.mark.parametrize("off, back", [(0.09, True), (0.11, False)])
def test_the_report_begins_with_its_verdict_and_a_bad_one_says_what_helps(off, back):
    source = torch.tensor([[1.0, -1.0]] * 2)
    inversion = Inversion((1.0, 0.0), (source, source), VARIANCE_EXPLODING, "SD15", True)
    result = InnerStep(0, 1, torch.ones(1), torch.zeros(1, 1, 1), source + off * spread(source))
    verdict, figures = report([result], 2, inversion, Settings(7.5, 2, 0.01, 0.0)).splitlines()
    assert verdict.startswith("the picture comes back" if back else "the picture does not come back")
    assert f"{100 * off:.3g}% of its latents' std" in verdict and ("raise inner_steps" in verdict) != back
    assert figures.startswith("1 steps at cfg 7.5, 3 predictions")


def null_text(model, positive, negative, inversion, cfg=7.5, inner_steps=10, rate=0.01, stop=1e-5):
    return SteerNullText.execute(model, positive, negative, cfg, inversion, inner_steps, rate, stop)


def resampled(model, positive, negative, inversion, cfg, sampler="euler"):
    """Sampling from the inverted latent, as a host guider does it."""
    start = inversion.latents[0]

    class From(comfy.samplers.Sampler):
        def sample(self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, *args):
            function = comfy.samplers.sampler_object(sampler).sampler_function
            return function(model_wrap, start.to(noise), sigmas, extra_args=extra_args, disable=True)

    guider = host_guider(model, positive, negative, cfg)
    return run(guider, From(), torch.tensor(inversion.sigmas), torch.zeros_like(start))


@pytest.fixture(scope="module")
def picture():
    return torch.from_numpy(render(scene_of("circle", "red", "blue", 50, 70, 30)).copy()).float()[None] / 255


@pytest.fixture(scope="module")
def case(shapes, picture):
    """A model, its conditionings, an inversion of the picture, and what null-text makes of it."""
    with torch.inference_mode():
        model, clip, vae = shapes
        positive, negative = encode(clip, CAPTION), encode(clip, "")
        inversion = inverted(model, positive, vae.encode(picture))
        return model, positive, negative, inversion, null_text(model, positive, negative, inversion)


def test_guided_sampling_returns_the_picture(shapes, picture, case):
    model, positive, negative, inversion, output = case
    latents = {
        "at cfg 1": resampled(model, positive, negative, inversion, 1.0),
        "plain": resampled(model, positive, negative, inversion, 7.5),
        "null-text": resampled(model, positive, output[0], inversion, 7.5),
    }
    vae = shapes[2]
    quality = {name: psnr(vae.decode(latent)[0], picture[0]) for name, latent in latents.items()}
    assert quality["null-text"] > quality["plain"] + 8, quality
    assert f"{STEPS} steps" in output.ui["text"][0]


def test_is_a_plain_conditioning(case):
    _, _, negative, inversion, output = case
    entries = output[0]
    assert len(entries) == STEPS
    for embedding, options in entries:
        assert embedding.shape == negative[0][0].shape and embedding.dtype == torch.float32
        assert torch.equal(options["pooled_output"], negative[0][1]["pooled_output"])
    assert not torch.equal(entries[0][0], negative[0][0])


@pytest.mark.parametrize("name", ["euler", "heun", "dpm_2", "dpmpp_2m", "dpmpp_2s_ancestral", "dpmpp_sde"])
def test_exactly_one_window_is_active_at_each_call(case, name):
    model, positive, _, inversion, output = case
    seen = []

    def calculate(args):
        seen.append([sum(comfy.samplers.get_area_and_mult(entry, args["input"], args["sigma"]) is not None
                         for entry in cond) for cond in args["conds"]])  # fmt: skip
        return comfy.samplers.calc_cond_batch(
            args["model"], args["conds"], args["input"], args["sigma"], args["model_options"]
        )

    model = closed_form(model, EPS)  # which is asked at the same levels as any other
    model.model_options["sampler_calc_cond_batch_function"] = calculate
    for sigmas in (inversion.sigmas, levels_of(model, 23)):
        guider = host_guider(model, positive, output[0], 7.5)
        run(guider, comfy.samplers.sampler_object(name), torch.tensor(sigmas), noise_of((1, 4, 16, 16)))
    assert len(seen) >= STEPS + 22 and all(count == [1, 1] for count in seen)


def test_windows_meet_without_a_gap_or_an_overlap():
    sigmas = tuple(torch.logspace(1.2, -1.5, 30).tolist()) + (0.0,)
    entries = windows([torch.zeros(1)] * 30, sigmas, {"kept": 1})
    bounds = [(options["timestep_start"], options["timestep_end"]) for _, options in entries]
    edges = torch.tensor([edge for pair in bounds for edge in pair if 0 < edge < 1e9])
    around = torch.cat([edges, *(torch.nextafter(edges, torch.full_like(edges, to)) for to in (0.0, 1e9))])
    for sigma in [*around, *torch.tensor(sigmas), torch.tensor(1e9)]:
        active = [i for i, (start, end) in enumerate(bounds) if not (sigma > start or sigma < end)]
        assert len(active) == 1
    assert [options["kept"] for _, options in entries] == [1] * 30


def test_through_the_stock_ksampler(case):
    model, positive, negative, inversion, output = case
    latent = {"samples": torch.zeros(1, 4, 16, 16)}
    with_it, without = (
        nodes.common_ksampler(model, 5, 10, 7.5, "dpmpp_2m", "normal", positive, given, latent)[0]["samples"]
        for given in (output[0], negative)
    )
    assert torch.isfinite(with_it).all() and not torch.allclose(with_it, without)


def test_model_calls_and_the_model_as_before(case, shapes):
    model, positive, negative, inversion, _ = case
    before = resampled(model, positive, negative, inversion, 7.5)
    counting, rows = counted(model)
    text = null_text(counting, positive, negative, inversion, 7.5, 2, 0.01, 0.0).ui["text"][0]
    assert rows == [1] * STEPS * 3 and f"{3 * STEPS} predictions" in text
    rows.clear()
    null_text(counting, positive, negative, inversion, 7.5, 2, 0.01, 1.0)
    assert rows == [1] * STEPS * 2
    assert torch.equal(resampled(model, positive, negative, inversion, 7.5), before)


def test_cfg_1_changes_nothing_and_calls_nothing(case):
    model, positive, negative, inversion, _ = case
    counting, rows = counted(model)
    entries = null_text(counting, positive, negative, inversion, 1.0)[0]
    assert not rows and len(entries) == STEPS
    assert all(torch.equal(embedding, negative[0][0]) for embedding, _ in entries)


@pytest.mark.parametrize("law", [EPS, FLOW])
def test_closed_form_models(shapes, law):
    """The mean of the embedding is the negative's estimate: it has to become the positive's."""
    model = closed_form(shapes[0], law)
    positive, negative = mean_conditioning(1), mean_conditioning(0.9)
    source = model.model.process_latent_out(1 + 0.7 * noise_of((1, 4, 8, 6)))
    inversion = inverted(model, positive, source, 6, 60)
    entries = null_text(model, positive, negative, inversion, 3.0, 60, 0.02, 0.0)[0]
    assert max(abs(float(embedding.mean()) - 1) for embedding, _ in entries) < 0.03
    back = resampled(model, positive, entries, inversion, 3.0)
    plain = resampled(model, positive, negative, inversion, 3.0)
    assert (back - source).square().mean() < 0.05 * (plain - source).square().mean()


def test_batch_equals_singles(shapes, picture):
    model, clip, vae = shapes
    positive, negative = encode(clip, CAPTION), encode(clip, "")
    other = torch.from_numpy(render(scene_of("star", "green", "white")).copy()).float()[None] / 255
    source = vae.encode(torch.cat([picture, other]))
    inversion = inverted(model, positive, source, 3)
    together = null_text(model, positive, negative, inversion, 7.5, 2)[0]
    for row in range(2):
        part = replace(inversion, latents=tuple(x[row : row + 1] for x in inversion.latents))
        alone = null_text(model, positive, negative, part, 7.5, 2)[0]
        for (a, _), (b, _) in zip(together, alone, strict=True):
            torch.testing.assert_close(a[row], b[0], rtol=1e-3, atol=1e-3 if ON_GPU else 1e-4)
    assert torch.isfinite(resampled(model, positive, together, inversion, 7.5)).all()


def test_long_prompts_and_another_shape(shapes):
    """154 tokens on the positive's side, 77 on the negative's, and a latent that is not square."""
    model, clip, _ = shapes
    positive, negative = encode(clip, " ".join([CAPTION] * 12)), encode(clip, "")
    assert positive[0][0].shape[1] == 154
    source = model.model.process_latent_out(noise_of((1, 4, 12, 20)))
    inversion = inverted(model, positive, source, 3)
    entries = null_text(model, positive, negative, inversion, 5.0, 2)[0]
    assert torch.isfinite(resampled(model, positive, entries, inversion, 5.0)).all()


def test_a_lent_controlnet_stays_on_every_step(shapes, case):
    """A ControlNet applied the old way is lent to the first negative entry only: here every entry has it."""

    class Control:
        extra_hooks, previous_controlnet, multigpu_clones = None, None, {}

        def get_extra_hooks(self):
            return []

        def get_models(self):
            return []

        def inference_memory_requirements(self, dtype):
            return 0

        def pre_run(self, *args):
            pass

        def cleanup(self):
            pass

        def get_control(self, x, *args):
            return {"output": [x.new_full((x.shape[0], 64, 16, 16), 0.3)] * 2}

    model, positive, negative, inversion, _ = case
    control = Control()
    with_control = node_helpers.conditioning_set_values(positive, {"control": control, "control_apply_to_uncond": True})
    output = null_text(model, with_control, negative, inversion, 7.5, 3)
    assert all(options["control"] is control for _, options in output[0])
    back, plain = (resampled(model, with_control, given, inversion, 7.5) for given in (output[0], negative))
    source = model.model.process_latent_out(inversion.latents[-1])
    assert (back - source).square().mean() < (plain - source).square().mean()


def test_where_the_host_runs_another_copy_of_the_model(case, monkeypatch):
    """As where it loads weights as layers run, for prompts with LoRA hooks: that copy is the one to differentiate."""
    if not hasattr(comfy.model_patcher, "ModelPatcherDynamic"):
        pytest.skip("this host has one way to load weights")
    model, positive, negative, inversion, _ = case
    copy, found = stock.load()[0], []
    patcher = comfy.model_patcher.ModelPatcher
    monkeypatch.setattr(patcher, "is_dynamic", lambda self: self.model is model.model)
    monkeypatch.setattr(patcher, "get_non_dynamic_delegate", lambda self: copy, raising=False)
    monkeypatch.setattr(comfy.sampler_helpers, "cond_has_hooks", lambda conds: True)
    with_branches(model, positive, negative, inversion, found.append)
    assert found[0]._run.model is copy.model is found[0]._differentiable.patcher.model


def test_interrupt_leaves_the_model_as_before(case):
    model, positive, negative, inversion, _ = case
    before = resampled(model, positive, negative, inversion, 7.5)
    model, rows = interrupted(model, 4)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        null_text(model, positive, negative, inversion)
    assert len(rows) == 4 and torch.is_inference_mode_enabled() and not torch.is_grad_enabled()
    assert torch.equal(resampled(case[0], positive, negative, inversion, 7.5), before)


class TestBadInput:
    def refused(self, case, message, **changes):
        names = ("model", "positive", "negative", "inversion")
        given = {**dict(zip(names, case[:4], strict=True)), **changes}
        model, rows = counted(given.pop("model"))
        with pytest.raises(ValueError, match=f"SteerNullText: .*{message}"):
            null_text(model, **given)
        assert not rows

    def changed(self, case, **changes):
        return replace(case[3], **changes)

    @pytest.mark.parametrize(
        "name, value", [("cfg", -1.0), ("cfg", float("nan")), ("inner_steps", 0), ("rate", 0.0), ("stop", -1.0)]
    )
    def test_numbers(self, case, name, value):
        self.refused(case, "it needs to be", **{name: value})

    def test_another_family(self, case):
        self.refused(case, "SDXL latents.*made with", inversion=self.changed(case, latent_format="SDXL"))

    def test_several_negatives(self, case):
        self.refused(case, "2 conditionings", negative=case[2] * 2)

    def test_prompts_of_another_batch(self, case):
        self.refused(case, "3 prompts.*1 pictures", negative=[[case[2][0][0].repeat(3, 1, 1), case[2][0][1]]])

    def test_a_limited_negative(self, case):
        limited = node_helpers.conditioning_set_values(case[2], {"start_percent": 0.2, "end_percent": 1.0})
        self.refused(case, "part of the run.*end_percent", negative=limited)

    def test_an_area(self, case):
        area = node_helpers.conditioning_set_values(case[1], {"area": (8, 8, 0, 0), "strength": 1.0})
        self.refused(case, "positive has an area", positive=area)

    def test_a_model_that_changes_its_text(self, case, monkeypatch):
        model = case[0].model
        before = model.extra_conds

        def extra_conds(**given):
            return {**before(**given), "c_crossattn": comfy.conds.CONDRegular(given["cross_attn"] * 2)}

        monkeypatch.setattr(model, "extra_conds", extra_conds)
        self.refused(case, "nothing to optimise")


def on_family(family):
    latent, start, inverted, sigmas = oracles.inversion_of(family)
    positive, negative = family.prompt(oracles.SOURCE), family.prompt("")
    found = SteerNullText.execute(family.model(), positive, negative, 4.0, inverted, 4, 0.06, 0.0)[0]

    def error(negative):
        guider = host_guider(family.model(), positive, negative, 4.0)
        return relative(sampled(start, guider, oracles.EULER, sigmas, latent)["samples"], family.picture())

    assert error(found) < 0.8 * error(negative)


def check_null_text(world, given, run, output):
    (conditioning,) = output
    checks.check_conditioning(conditioning)
    sigmas = given["inversion"].sigmas
    assert len(conditioning) == len(sigmas) - 1
    for sigma in (1e9, *sigmas):
        active = [o for _, o in conditioning if o["timestep_end"] <= sigma <= o["timestep_start"]]
        assert len(active) == 1


ORACLE = {
    "SteerNullText": ("guided sampling comes nearer to the picture than with the plain negative", on_family),
}
CHECK = {
    "SteerNullText": (check_null_text, ()),
}
USUAL = {
    "SteerNullText": {"inner_steps": (1, 2), "learning_rate": (0.01, 0.0001), "early_stop": (0.0, 1e-05)},
}
