"""Gradient guidance on the host: exact where the truth is known, and the model left as it was."""

from dataclasses import dataclass, field
from functools import partial

import comfy.model_management
import comfy.samplers
import pytest
import torch
from steer.bench.attention_cost import peak_bytes
from steer.lab.comfy.random_models import tiny_flux, tiny_sdxl
from steer.lab.comfy.runs import counted, encode, host_guider, noise_of, run, sigmas_of
from steer.nodes.blended_diffusion import SteerBlendedSampler
from steer.nodes.ddim import SteerDDIMSampler
from steer.nodes.direct_edit import SteerDirectEditSampler, SteerEditGuider
from steer.nodes.gradient_guidance import SteerGradientGuider
from steer.nodes.guidance import SteerCFGGuider
from steer.nodes.host.law import noise_law
from steer.nodes.prompt_to_prompt import SteerPromptEdit, SteerPromptToPromptGuider
from steer.samplers.core import SampleNoise
from steer.samplers.direct_edit import direct_edit
from steer.tests import checks, oracles
from steer.tests.cases import checkered, in_pairs
from steer.tests.host_models import (
    EPS,
    FLOW,
    ON_GPU,
    V,
    again,
    closed_form,
    free_memory,
    hole,
    mean_conditioning,
    relative,
    split_rows,
    with_control,
    with_law,
)

LAWS = [EPS, V, FLOW]
PRIOR, MEAN, READ, NOISE = 0.5, 0.2, 1.0, 0.6  # x0 ~ N(MEAN, PRIOR), y = x0 + NOISE e = READ in every latent value
POSTERIOR = 1 / (1 / PRIOR + 1 / NOISE**2)
POSTERIOR_MEAN = POSTERIOR * (MEAN / PRIOR + READ / NOISE**2)


@dataclass(frozen=True)
class Reading:
    """`-log p(y | x)` of the reading, in closed form, from the estimate or from x."""

    noisy: bool = False
    seen: list = field(default_factory=list)
    patchers = ()

    def memory(self, shape):
        return 0.0

    def start(self, run, latent_format, differentiable):
        def loss(latent, sigma):
            self.seen.append((tuple(latent.shape), sigma, latent.dtype))
            alpha, noise = run.law.alpha(sigma), run.law.std(sigma) ** 2
            left = PRIOR * noise / (alpha**2 * PRIOR + noise)
            if self.noisy:
                latent = MEAN + alpha * PRIOR / (alpha**2 * PRIOR + noise) * (latent - alpha * MEAN)
            return 0.5 * (READ - latent).square().flatten(1).sum(1) / (left + NOISE**2)

        return loss


class Square(Reading):
    """The squared distance of the estimate to 0.8: finite at every level, with no model of x0."""

    def start(self, run, latent_format, differentiable):
        return lambda latent, sigma: 0.5 * (latent - 0.8).square().flatten(1).sum(1)


def guided(guider, loss, scale=1.0, start=0.0, end=1.0, through_model=True, mask=None, max_change=1000.0):
    return SteerGradientGuider.execute(guider, loss, scale, start, end, through_model, mask, max_change)[0]


def known_guider(shapes, law, mean=MEAN, variance=PRIOR):
    model = closed_form(shapes[0], law, variance)
    return host_guider(model, mean_conditioning(mean), mean_conditioning(mean), 1.0)


def euler():
    return comfy.samplers.sampler_object("euler")


@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize("law", LAWS)
def test_the_classifiers_posterior_is_sampled(shapes, law, noisy):
    """At scale 1, with the classifier in closed form, guided sampling is sampling of the conditional model."""
    guider, noise = known_guider(shapes, law), noise_of((2, 4, 8, 8))
    sigmas = sigmas_of(guider.model_patcher, 12)
    sigmas[0] = min(float(sigmas[0]), 0.999) if law == FLOW else sigmas[0]
    expected = run(known_guider(shapes, law, POSTERIOR_MEAN, POSTERIOR), euler(), sigmas, noise)
    plain = run(guider, euler(), sigmas, noise)
    assert relative(run(guided(guider, Reading(noisy)), euler(), sigmas, noise), expected) < 1e-5
    assert relative(plain, expected) > 0.1


@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize("law", LAWS)
def test_under_direct_edit_the_target_is_guided_and_the_source_is_what_it_is(shapes, law, noisy):
    """An edit between one prompt twice, with the classifier: from the prior to the conditional model."""
    model, latent = closed_form(shapes[0], law, PRIOR), noise_of((2, 4, 8, 8), 1)
    pair = SteerEditGuider.execute(model, mean_conditioning(MEAN), mean_conditioning(MEAN), 1.0, 1.0)[0]
    sigmas, sampler = sigmas_of(model, 8)[2:], SteerDirectEditSampler.execute(0.0, 0.0, 1)[0]
    out = run(guided(pair, Reading(noisy)), sampler, sigmas, torch.zeros_like(latent), latent)
    assert relative(run(pair, sampler, sigmas, torch.zeros_like(latent), latent), latent) < 1e-5

    source, of = model.model.process_latent_in(latent), noise_law(model.model.model_sampling)

    def estimate(x, sigma, mean, variance):
        alpha = of.alpha(sigma)
        return mean + alpha * variance / (alpha**2 * variance + of.std(sigma) ** 2) * (x - alpha * mean)

    def denoisers(x_source, x_target, sigma):
        return estimate(x_source, sigma, MEAN, PRIOR), estimate(x_target, sigma, POSTERIOR_MEAN, POSTERIOR)

    noise = SampleNoise(3, "edit", torch.zeros_like(source), source)
    levels = sigmas.tolist()
    x = of.noised(source, levels[0], noise(source))
    *_, last = direct_edit(denoisers, x, levels, of, source, noise)
    assert relative(out, model.model.process_latent_out(last.x)) < 1e-5
    assert relative(out, latent) > 0.01


def test_under_direct_edit_a_mask_is_of_the_target(shapes):
    """Where it is 0 the edit is the plain one, exactly."""
    model, latent, mask = closed_form(shapes[0], EPS), noise_of((2, 4, 8, 8), 1), torch.zeros(1, 64, 64)
    mask[..., :32] = 1.0
    pair = SteerEditGuider.execute(model, mean_conditioning(1), mean_conditioning(3), 1.0, 1.0)[0]
    given = SteerDirectEditSampler.execute(0.0, 0.0, 1)[0], sigmas_of(model, 8)[2:], torch.zeros_like(latent), latent
    plain, out = run(pair, *given), run(guided(pair, Square(), 0.3, mask=mask), *given)
    assert torch.equal(out[..., 4:], plain[..., 4:]) and relative(out[..., :4], plain[..., :4]) > 1e-2


def test_under_direct_edit_with_prompt_to_prompt_the_source_stays(shapes):
    prompts = "a red circle on a blue background", "a green circle on a blue background"
    source, target, edit = SteerPromptEdit.execute(shapes[1], *prompts, "auto", "").args[:3]
    pair = SteerPromptToPromptGuider.execute(shapes[0], source, target, encode(shapes[1], ""), 1.0, edit, 0.8, 0.4)[0]
    latent, sampler = noise_of((1, 4, 16, 16), 2), SteerDirectEditSampler.execute(0.0, 0.0, 1)[0]
    given = sampler, sigmas_of(shapes[0], 4)[1:], torch.zeros_like(latent), latent
    plain, out = run(pair, *given), run(guided(pair, Square(), through_model=False), *given)
    assert relative(out[:1], latent) < 1e-5 and relative(out[1:], plain[1:]) > 1e-2


@pytest.mark.parametrize("law, steps, noisy", in_pairs(LAWS, [10, 40], [False, True]))
def test_at_the_very_top(shapes, law, steps, noisy):
    """From pure noise. At a flow model's sigma 1 x says nothing, and the reading all the same."""
    guider, noise = known_guider(shapes, law), noise_of((1, 4, 8, 8))
    sigmas = sigmas_of(guider.model_patcher, steps)
    out = run(guided(guider, Reading(noisy)), euler(), sigmas, noise)
    expected = run(known_guider(shapes, law, POSTERIOR_MEAN, POSTERIOR), euler(), sigmas, noise)
    assert relative(out, expected) < 1e-5


def test_one_step_from_the_top_is_the_posteriors_mean(shapes):
    guider, noise, top = known_guider(shapes, FLOW), noise_of((2, 4, 8, 8)), torch.tensor([1.0, 0.0])
    to_model = guider.model_patcher.model.process_latent_in
    for noisy in (False, True):
        out = to_model(run(guided(guider, Reading(noisy)), euler(), top, noise))
        torch.testing.assert_close(out, torch.full_like(out, POSTERIOR_MEAN), rtol=1e-4, atol=0)


def test_at_the_top_all_but_the_model_goes_by_the_level_of_the_run(shapes):
    """Windows of conditionings, and what patches are told; and the model's own wrapper is still there."""
    model, told, seen = with_law(shapes[0], FLOW), [], []

    def wrapper(apply_model, args):
        told.append(float(args["timestep"].max()))
        return apply_model(args["input"], args["timestep"], **args["c"])

    def patch(x, options):
        seen.append(float(options["sigmas"].max()))
        return x

    model.set_model_unet_function_wrapper(wrapper)
    model.set_model_input_block_patch(patch)
    conds = encode(shapes[1], "a red circle on a blue background"), encode(shapes[1], "")
    ((text, options),) = conds[0]
    conds = [[text, {**options, "start_percent": 0.0, "end_percent": 0.02}],
             [0 * text, {**options, "start_percent": 0.02, "end_percent": 1.0}]], conds[1]  # fmt: skip
    sigmas, noise = torch.tensor([1.0, 0.5, 0.0]), noise_of((1, 4, 16, 16))
    out = run(guided(host_guider(model, *conds, 3.0), Square()), euler(), sigmas, noise)
    assert torch.isfinite(out).all() and set(seen) == {1.0, 0.5}
    assert len(told) == 5 and (told[0], told[3], told[4]) == (1.0, 1.0, 0.5)
    assert told[1] == told[2] and 0.99 < told[1] < 1.0


@pytest.mark.parametrize("through_model", [True, False])
def test_scale_0_is_bitwise_plain(guider, through_model):
    sigmas, noise = sigmas_of(guider.model_patcher, 5), noise_of((2, 4, 16, 16))
    loss = Square()
    out = run(guided(guider, loss, 0.0, through_model=through_model), euler(), sigmas, noise)
    assert torch.equal(out, run(guider, euler(), sigmas, noise)) and not loss.seen


@pytest.mark.parametrize("name, through_model", checkered(["euler", "dpmpp_2m", "heun", "euler_ancestral"],
                         [True, False]))  # fmt: skip
def test_a_batch_is_its_singles_and_seeds_repeat(guider, through_model, name):
    sampler = comfy.samplers.sampler_object(name)
    if name == "euler_ancestral":  # the host draws its noise for the batch
        sampler = SteerDDIMSampler.execute(1.0)[0]
    sigmas, noise = sigmas_of(guider.model_patcher, 5), noise_of((2, 4, 16, 16))
    steered = guided(guider, Square(), 1.0, through_model=through_model, max_change=0.5)
    both = run(steered, sampler, sigmas, noise)
    assert again(run(steered, sampler, sigmas, noise), both)
    singles = torch.cat([run(steered, sampler, sigmas, noise[i : i + 1]) for i in range(2)])
    assert relative(both, singles) < 5e-5  # float32 rounding, over up to ten calls; how much is the CPU's
    assert relative(both, run(guider, sampler, sigmas, noise)) > 0.01


@pytest.mark.parametrize("law, through_model", checkered([EPS, FLOW], [True, False]))
def test_more_steps_converge_to_one_result(shapes, law, through_model):
    guider, noise = known_guider(shapes, law), noise_of((1, 4, 8, 8))
    model_sampling = guider.model_patcher.get_model_object("model_sampling")
    top = 0.98 if law == FLOW else float(model_sampling.sigma_max)
    results = []
    for steps in (20, 40, 80, 160):
        levels = torch.linspace(0, 1, steps + 1)
        sigmas = top * (1 - levels) if law == FLOW else (top**0.3 * (1 - levels)) ** (1 / 0.3)
        results.append(run(guided(guider, Square(), 1.0, through_model=through_model), euler(), sigmas, noise))
    gaps = [relative(a, b) for a, b in zip(results, results[1:], strict=False)]
    assert gaps[1] < 0.6 * gaps[0] and gaps[2] < 0.6 * gaps[1] and gaps[2] < 0.02


def test_the_gradient_through_the_model_is_its_derivative(shapes, guider):
    """One call, against finite differences of the loss of the host's own guider."""
    noise, sigmas = noise_of((1, 4, 16, 16)), torch.tensor([2.0, 0.0])
    plain = run(guider, euler(), sigmas, noise)
    moved = run(guided(guider, Square(), 1e-3), euler(), sigmas, noise)
    to_model = guider.model_patcher.model.process_latent_in
    change = (to_model(moved) - to_model(plain)) / 1e-3
    direction = change / change.norm()

    def loss(step):
        # the starting noise is scaled by sigma (and is not at the model's top, so by nothing else)
        denoised = to_model(run(guider, euler(), sigmas, noise + step * direction / 2.0))
        return float(0.5 * (denoised.double() - 0.8).square().sum())

    slope = (loss(2e-2) - loss(-2e-2)) / 4e-2
    # D' - D = -sigma^2 dL/dx
    assert float((change * direction).sum()) == pytest.approx(-4.0 * slope, rel=0.02)


def test_interval_and_costs(shapes):
    model, rows = counted(shapes[0])
    conds = encode(shapes[1], "a red circle on a blue background"), encode(shapes[1], "")
    steps = 10
    sigmas = sigmas_of(model, steps)
    loss = Reading()
    run(guided(host_guider(model, *conds, 3.0), loss, 1.0, 0.2, 0.6), euler(), sigmas, noise_of((1, 4, 16, 16)))
    assert sum(rows) == 2 * steps
    at = model.get_model_object("model_sampling").percent_to_sigma
    expected = [float(sigma) for sigma in sigmas[:-1] if at(0.6) <= sigma <= at(0.2)]
    assert [sigma for _, sigma, _ in loss.seen] == expected and 0 < len(expected) < steps
    assert {dtype for *_, dtype in loss.seen} == {torch.float32}


@pytest.mark.parametrize("through_model", [True, False])
def test_the_limit(guider, through_model):
    sigmas, noise = torch.tensor([3.0, 0.0]), noise_of((2, 4, 16, 16))
    to_model = guider.model_patcher.model.process_latent_in
    plain = to_model(run(guider, euler(), sigmas, noise))
    steered = guided(guider, Square(), 1e4, through_model=through_model, max_change=0.3)
    change = to_model(run(steered, euler(), sigmas, noise)) - plain
    most = 0.3 * (9 / 10) ** 0.5
    torch.testing.assert_close(change.square().mean((1, 2, 3)).sqrt(), torch.tensor([most, most]), rtol=1e-3, atol=0)


@pytest.mark.parametrize("through_model, close", [(True, 1e-5), (False, 0.0)])
def test_the_mask_bounds_the_change(guider, through_model, close):
    sigmas, noise = torch.tensor([3.0, 0.0]), noise_of((2, 4, 16, 16))
    mask = torch.zeros(1, 128, 128)
    mask[:, 32:96, 32:96] = 1
    plain = run(guider, euler(), sigmas, noise)
    out = run(guided(guider, Square(), 1.0, mask=mask, through_model=through_model), euler(), sigmas, noise)
    inside = (out - plain)[..., 4:12, 4:12].clone()
    out[..., 4:12, 4:12] = plain[..., 4:12, 4:12]
    assert relative(out, plain) <= close and inside.abs().mean() > 0.1


@pytest.mark.parametrize("through_model", [True, False])
def test_two_losses_add_up_over_one_model_call(shapes, through_model):
    model, rows = counted(shapes[0])
    conds = encode(shapes[1], "a red circle on a blue background"), encode(shapes[1], "")
    guider, sigmas, noise = host_guider(model, *conds, 3.0), torch.tensor([3.0, 0.0]), noise_of((1, 4, 16, 16))
    plain = run(guider, euler(), sigmas, noise)
    losses = Square(), Reading(noisy=True)
    alone = [run(guided(guider, loss, 0.5, through_model=through_model), euler(), sigmas, noise) for loss in losses]
    rows.clear()
    nested = guided(guided(guider, losses[0], 0.5, through_model=through_model), losses[1], 0.5, through_model=True)
    both = run(nested, euler(), sigmas, noise)
    assert sum(rows) == 2
    torch.testing.assert_close(both - plain, sum(alone) - 2 * plain, rtol=1e-4, atol=1e-3 if ON_GPU else 1e-5)


def test_round_steers_guider_and_inside_blended_diffusion(shapes):
    conds = [encode(shapes[1], text) for text in ("a red circle on a blue background", "a star", "")]
    steer = SteerCFGGuider.execute(shapes[0], *conds[:2], 3.0, 0.0, 0.7, 0.5, conds[2])[0]
    sigmas, noise, known = sigmas_of(shapes[0], 6), noise_of((1, 4, 16, 16)), noise_of((1, 4, 16, 16), 5)
    sampler, mask = SteerBlendedSampler.execute(euler(), 0)[0], hole()
    plain = run(steer, sampler, sigmas, noise, known, mask)
    out = run(guided(steer, Square(), 1.0), sampler, sigmas, noise, known, mask)
    outside = (1 - mask).bool().expand_as(out)
    torch.testing.assert_close(out[outside], known[outside], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(out, plain, atol=1e-2)


def test_the_model_is_as_it_was(shapes, guider):
    sigmas, noise = sigmas_of(shapes[0], 4), noise_of((1, 4, 16, 16))
    before, options = run(guider, euler(), sigmas, noise), repr(guider.model_options)
    patcher, wrappers = guider.model_patcher, len(guider.model_patcher.weight_wrapper_patches)
    for through_model in (True, False):
        run(guided(guider, Square(), 1.0, through_model=through_model), euler(), sigmas, noise)
        assert torch.equal(run(guider, euler(), sigmas, noise), before)
    assert guider.model_patcher is patcher and len(patcher.weight_wrapper_patches) == wrappers
    assert repr(guider.model_options) == options and not patcher.additional_models
    assert not any(getattr(module, "weight_function", None) for module in shapes[0].model.modules())


class Failing(Square):
    """Fails, or has the run interrupted, in the third call."""

    def __init__(self, how):
        super().__init__()
        object.__setattr__(self, "how", how)

    def start(self, run, latent_format, differentiable):
        def loss(latent, sigma):
            self.seen.append(sigma)
            if len(self.seen) == 3:
                self.how()
            return (latent - 1).square().flatten(1).sum(1)

        return loss


@pytest.mark.parametrize("through_model", [True, False])
def test_failure_and_interrupt_leave_the_model(shapes, guider, through_model):
    sigmas, noise = sigmas_of(shapes[0], 5), noise_of((1, 4, 16, 16))
    before = run(guider, euler(), sigmas, noise)

    def fail():
        raise RuntimeError("midway")

    with pytest.raises(RuntimeError, match="midway"):
        run(guided(guider, Failing(fail), 1.0, through_model=through_model), euler(), sigmas, noise)
    assert torch.equal(run(guider, euler(), sigmas, noise), before)
    interrupting = Failing(lambda: comfy.model_management.interrupt_current_processing(True))
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run(guided(guider, interrupting, 1.0, through_model=through_model), euler(), sigmas, noise)
    assert len(interrupting.seen) == 3
    assert torch.equal(run(guider, euler(), sigmas, noise), before)


@pytest.mark.parametrize("through_model", [True, False])
def test_nan_gradients_are_said(guider, through_model):
    class Broken(Square):
        def start(self, run, latent_format, differentiable):
            return lambda latent, sigma: (latent * float("inf")).flatten(1).sum(1)

    with pytest.raises(ValueError, match="SteerGradientGuider: the gradient holds NaN"):
        run(guided(guider, Broken(), through_model=through_model), euler(), torch.tensor([3.0, 0.0]),
            noise_of((1, 4, 16, 16)))  # fmt: skip


def test_a_patch_that_cuts_the_gradient_is_said(shapes, guider):
    guider.model_options = {
        **guider.model_options,
        "sampler_post_cfg_function": [lambda args: args["denoised"].detach()],
    }
    with pytest.raises(ValueError, match="SteerGradientGuider: .*cuts.*through_model off"):
        run(guided(guider, Square()), euler(), torch.tensor([3.0, 0.0]), noise_of((1, 4, 16, 16)))


def with_free(monkeypatch, free):
    """The host counts this many bytes as free from now on."""
    monkeypatch.setattr(comfy.model_management, "get_free_memory", free_memory(lambda: free))


def asked(caplog, compute):
    """How many bytes the log says that gradients take, and how many a run then had given out."""
    with caplog.at_level("INFO", "steer"):
        held = peak_bytes(compute)
    return [record.args[1] * 2**30 for record in caplog.records if "take %.2f GiB" in record.msg], held


def shapes_guider(shapes, cfg, control=False):
    positive = encode(shapes[1], "a red circle on a blue background")
    return host_guider(shapes[0], with_control(positive) if control else positive, encode(shapes[1], ""), cfg)


def sdxl_guider(shapes, cfg):
    text = [[noise_of((1, 77, 128), 1), {"pooled_output": noise_of((1, 1280), 2)}]]
    return host_guider(tiny_sdxl(), text, text, cfg)


def flux_guider(shapes, cfg):
    text = [[noise_of((1, 12, 48), 1), {"pooled_output": noise_of((1, 32), 2), "guidance": 3.5}]]
    return host_guider(tiny_flux(), text, text, cfg)


@pytest.mark.skipif(ON_GPU, reason="torch's own workspaces are larger there than what is kept")
@pytest.mark.parametrize(
    "guider_of, cfg, shape",
    [
        (shapes_guider, 3.0, (1, 4, 16, 16)),
        (shapes_guider, 3.0, (3, 4, 16, 16)),
        (shapes_guider, 1.0, (1, 4, 32, 24)),
        (partial(shapes_guider, control=True), 3.0, (2, 4, 16, 16)),
        (sdxl_guider, 3.0, (1, 4, 16, 16)),
        (sdxl_guider, 3.0, (3, 4, 24, 16)),
        (flux_guider, 1.0, (1, 16, 32, 32)),
        (flux_guider, 2.0, (2, 16, 24, 32)),
    ],
)
def test_what_is_asked_for_is_what_is_held(shapes, caplog, guider_of, cfg, shape):
    guider, noise, sigmas = guider_of(shapes, cfg), noise_of(shape), torch.tensor([0.9, 0.5])
    run(guider, euler(), sigmas, noise)
    (said,), held = asked(caplog, lambda: run(guided(guider, Square()), euler(), sigmas, noise))
    assert held <= said <= 1.2 * held


@pytest.mark.skipif(ON_GPU, reason="with so little of a GPU's memory free the host loads the model otherwise")
def test_just_enough_memory_and_a_little_less(shapes, guider, caplog, monkeypatch):
    """Kept or computed again, with the same picture; and nothing is refused."""
    sigmas, noise = torch.tensor([3.0, 1.0]), noise_of((2, 4, 16, 16))
    (needed,), _ = asked(caplog, lambda: run(guided(guider, Square()), euler(), sigmas, noise))
    split_rows(monkeypatch, shapes[0], False)
    outs = []
    for free, kept in ((needed, True), (0.99 * needed, False)):
        caplog.clear()
        with_free(monkeypatch, free)
        said, _ = asked(caplog, lambda: outs.append(run(guided(guider, Square()), euler(), sigmas, noise)))
        assert bool(said) == kept and ("computed again on the way back" in caplog.text) != kept
    assert relative(*outs) < 1e-5


@pytest.mark.parametrize("through_model", [True, False])
def test_a_loss_that_reads_x_needs_no_room(shapes, guider, monkeypatch, through_model):
    """Nor does one that reads the estimate and is not differentiated through the model."""
    sigmas, noise = torch.tensor([3.0, 1.0]), noise_of((8, 4, 16, 16))
    loss = Reading(noisy=through_model)

    def steered():
        return guided(guider, loss, through_model=through_model)

    expected = run(steered(), euler(), sigmas, noise)
    memory_required = shapes[0].model.memory_required
    monkeypatch.setattr(shapes[0].model, "memory_required", lambda shape, **_: 1e6 * memory_required(shape))
    with_free(monkeypatch, 2**30)
    assert relative(run(steered(), euler(), sigmas, noise), expected) < 1e-4


class OutOfMemory(torch.autograd.Function):
    """Not enough memory for the first way back."""

    ways = 0

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, given):
        OutOfMemory.ways += 1
        if OutOfMemory.ways == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return given


def test_what_the_estimate_misses_is_computed_again(shapes, monkeypatch):
    """What a patch takes on the way back, say."""
    model = shapes[0].clone()
    model.set_model_unet_function_wrapper(
        lambda apply_model, args: OutOfMemory.apply(apply_model(args["input"], args["timestep"], **args["c"]))
    )
    conds = encode(shapes[1], "a red circle on a blue background"), encode(shapes[1], "")
    sigmas, noise, outs = torch.tensor([3.0, 1.0, 0.0]), noise_of((2, 4, 16, 16)), []
    for first in (1, 0):  # without the error, and with it
        monkeypatch.setattr(OutOfMemory, "ways", first)
        outs.append(run(guided(host_guider(model, *conds, 3.0), Square()), euler(), sigmas, noise))
        assert OutOfMemory.ways == 3
    assert relative(*outs) < 1e-4


def test_memory_that_does_not_last_for_blocks_either_is_said_with_advice(shapes, guider, monkeypatch):
    def never(ctx, given):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(OutOfMemory, "backward", staticmethod(never))
    model = shapes[0].clone()
    model.set_model_unet_function_wrapper(
        lambda apply_model, args: OutOfMemory.apply(apply_model(args["input"], args["timestep"], **args["c"]))
    )
    guider.model_patcher = model
    guider.model_options = model.model_options
    with pytest.raises(torch.OutOfMemoryError, match="SteerGradientGuider: .*through_model off.*CUDA out of memory"):
        run(guided(guider, Square()), euler(), torch.tensor([3.0, 0.0]), noise_of((1, 4, 16, 16)))


def test_too_little_memory_is_said_in_the_first_call(shapes, monkeypatch):
    model, rows = counted(shapes[0])
    guider = host_guider(model, encode(shapes[1], "a red circle on a blue background"), encode(shapes[1], ""), 3.0)
    with_free(monkeypatch, 2**20)
    with pytest.raises(ValueError, match="SteerGradientGuider: .*more than the 0.00 GiB .* through_model off"):
        run(guided(guider, Square()), euler(), torch.tensor([3.0, 1.0, 0.0]), noise_of((1, 4, 16, 16)))
    assert len(rows) <= 4  # a call with all kept and one with blocks', conditionings one by one


class Large(Square):
    def memory(self, shape):
        return 2.0**31


def test_too_little_memory_for_a_loss_is_said_before_the_first_call(shapes, monkeypatch):
    model, rows = counted(shapes[0])
    guider = host_guider(model, encode(shapes[1], "a red circle on a blue background"), encode(shapes[1], ""), 3.0)
    with_free(monkeypatch, 2**30)
    with pytest.raises(ValueError, match="SteerGradientGuider: about 2.00 GiB .* 1.00 are free.*through_model off"):
        run(guided(guider, Large()), euler(), torch.tensor([3.0, 0.0]), noise_of((1, 4, 16, 16)))
    assert not rows


def test_bad_input(shapes, guider):
    for wrong in ({"scale": float("nan")}, {"start": 0.5, "end": 0.5}, {"end": 1.5}, {"max_change": -1.0}):
        with pytest.raises(ValueError, match="SteerGradientGuider: "):
            guided(guider, Square(), **wrong)
    sigmas, noise = torch.tensor([3.0, 0.0]), noise_of((1, 4, 16, 16))
    for mask, message in ((torch.ones(1, 64, 128), "aspect"), (torch.ones(3, 128, 128), "3 masks")):
        with pytest.raises(ValueError, match=f"SteerGradientGuider: .*{message}"):
            run(guided(guider, Square(), mask=mask), euler(), sigmas, noise)
    with pytest.raises(ValueError, match="SteerGradientGuider: .*16 channels"):
        run(guided(guider, Square()), euler(), sigmas, noise_of((1, 16, 16, 16)), torch.ones(1, 16, 16, 16))


def test_flow_and_v_on_the_real_network(shapes):
    """The shapes network under other laws draws no shapes, but every law's path has to run and to steer."""
    for law in (V, FLOW):
        model = with_law(shapes[0], law)
        guider = host_guider(model, encode(shapes[1], "a red circle on a blue background"), encode(shapes[1], ""), 3.0)
        sigmas, noise = sigmas_of(model, 4), noise_of((1, 4, 16, 16))
        plain = run(guider, euler(), sigmas, noise)
        for through_model in (True, False):
            steered = guided(guider, Square(), 0.5, through_model=through_model, max_change=1.0)
            out = run(steered, euler(), sigmas, noise)
            assert torch.isfinite(out).all() and not torch.allclose(out, plain)


@pytest.mark.parametrize("through_model", [True, False])
def test_on_fluxs_structure(through_model):
    model = tiny_flux()
    text = [[noise_of((1, 12, 48), 1), {"pooled_output": noise_of((1, 32), 2), "guidance": 3.5}]]
    guider, sigmas, noise = host_guider(model, text, text, 1.0), sigmas_of(model, 4), noise_of((2, 16, 8, 8))
    plain = run(guider, euler(), sigmas, noise)
    out = run(guided(guider, Square(), 0.5, through_model=through_model, max_change=1.0), euler(), sigmas, noise)
    distances = [(model.model.process_latent_in(each) - 0.8).square().mean() for each in (out, plain)]
    assert distances[0] < 0.8 * distances[1]
    assert torch.equal(run(guider, euler(), sigmas, noise), plain)


def on_family(family):
    guider, sigmas = oracles.guider_of(family, 2.0), oracles.from_level(family)

    def guided(scale, through_model):
        steered = SteerGradientGuider.execute(guider, Square(), scale, 0.0, 1.0, through_model, None, 1.0)[0]
        return run(steered, oracles.EULER, sigmas, oracles.noise_for(family), family.picture())

    plain = run(guider, oracles.EULER, sigmas, oracles.noise_for(family), family.picture())
    distance = lambda x: (family.model().model.process_latent_in(x) - 0.8).square().mean()  # noqa: E731
    for through_model in (True, False):
        assert torch.equal(guided(0.0, through_model), plain)
        assert distance(guided(0.5, through_model)) < 0.95 * distance(plain)
    assert torch.equal(run(guider, oracles.EULER, sigmas, oracles.noise_for(family), family.picture()), plain)


ORACLE = {
    "SteerGradientGuider": ("scale 0 is plain bit for bit; else the loss falls, through the model and not", on_family),
}
CHECK = {
    "SteerGradientGuider": (checks.guider, checks.RUN),
}
USUAL = {
    "SteerGradientGuider": {"scale": (0.0, 5.0)},
}
