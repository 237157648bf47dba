import gc
import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from steer.samplers.ddim import ddim
from steer.samplers.inversion import Inversion, invert
from steer.samplers.noise_law import RECTIFIED_FLOW, VARIANCE_EXPLODING, NoiseLaw
from steer.tests.closed_form import gaussian_denoiser, last, log_spaced

LAWS = [VARIANCE_EXPLODING, RECTIFIED_FLOW]
MEAN = torch.tensor([0.5, -1.0], dtype=torch.float64)
COVARIANCE = torch.tensor([[1.0, 0.6], [0.6, 0.5]], dtype=torch.float64)


def sigmas_of(law, steps, low=0.03):
    levels = log_spaced(14.6, low, steps)
    return levels if not law.flow else [1.0, *(level / (1 + level) for level in levels[1:])]


def counted(denoise):
    calls = []

    def wrapper(x, sigma):
        calls.append(sigma)
        return denoise(x, sigma)

    return wrapper, calls


@pytest.mark.parametrize("law", LAWS)
def test_refined_inversion_is_exact(law):
    denoise, sigmas = gaussian_denoiser(law, MEAN, COVARIANCE), sigmas_of(law, 30)
    source = MEAN + torch.randn(5, 2, dtype=torch.float64) @ COVARIANCE
    levels = list(invert(denoise, source, sigmas, law, refine=20, tolerance=1e-11))
    assert [level.sigma for level in levels] == sigmas[-2::-1]
    torch.testing.assert_close(last(ddim(denoise, levels[-1].x, sigmas, law)), source, atol=1e-8, rtol=0)
    assert max(float(level.residual.max()) for level in levels) < 1e-7


@pytest.mark.parametrize("law", LAWS)
def test_each_level_solves_its_step(law):
    """The closed form of the implicit step on a Gaussian: y - mean = (x - mean) / (1 - (b - a) b / (S + b^2))."""
    variance, mean = 0.4, torch.zeros(1, dtype=torch.float64)
    denoise = gaussian_denoiser(law, mean, torch.tensor([[variance]], dtype=torch.float64))
    source = torch.randn(3, 1, dtype=torch.float64)
    x, sigmas = source, sigmas_of(law, 10)
    for level, below in zip(invert(denoise, source, sigmas, law, 30, 1e-12), reversed(sigmas), strict=False):
        sigma, alpha = level.sigma, law.alpha(level.sigma)
        gain = alpha * variance / (alpha**2 * variance + sigma**2)
        torch.testing.assert_close(level.x * (1 - (sigma - below) / sigma * (1 - gain)), x, atol=1e-10, rtol=0)
        x = level.x


@pytest.mark.parametrize("tolerance", [1e-4, 1e-5])
def test_a_denoiser_that_keeps_nearly_all_near_0_comes_back(tolerance):
    """As untrained models do: the stiff levels' long steps go too far, and the first, short one promises too much."""
    source, sigmas = torch.randn(2, 4, 8, 8, dtype=torch.float64), [0.2, 0.029, 0.0]
    denoise = lambda x, sigma: x - sigma * torch.sin(x)  # noqa: E731
    found = list(invert(denoise, source, sigmas, VARIANCE_EXPLODING, 20, tolerance))[-1].x
    error = (last(ddim(denoise, found, sigmas, VARIANCE_EXPLODING)) - source).abs().max()
    assert error < 5 * tolerance


def test_what_is_kept_is_as_good_as_what_was_evaluated():
    """In float32, where the last differences are all rounding and the step made of them went 600 times too far."""
    source, errors = 0.18 * torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), []
    denoise = lambda x, sigma: 3.0 + 0.5 / (0.5 + sigma**2) * (x - 3.0)  # noqa: E731
    for sigma in torch.linspace(0.03, 0.6, 120).tolist():
        (level,) = invert(denoise, source, [sigma, 0.0], VARIANCE_EXPLODING, 20, 1e-4)
        assert float(level.residual.max()) < 1e-4
        errors.append(float((denoise(level.x, sigma) - source).abs().max()))
    assert max(errors) < 1e-4


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("refine", [0, 10])
def test_error_to_the_exact_flow_halves(law, refine):
    """PF-ODE of a Gaussian from sigma 0 up, in the ratio: the deviation grows by sqrt((S + r^2) / S)."""
    variance, top = 0.4, 5.0
    denoise = gaussian_denoiser(law, MEAN[:1], torch.tensor([[variance]], dtype=torch.float64))
    source = MEAN[:1] + torch.tensor([[0.7]], dtype=torch.float64)
    exact = MEAN[:1] + 0.7 * ((variance + top**2) / variance) ** 0.5
    errors = []
    for steps in (100, 200):
        ratios = log_spaced(top, 1e-3, steps)
        sigmas = ratios if not law.flow else [r / (1 + r) for r in ratios]
        x = list(invert(denoise, source, sigmas, law, refine, 1e-10))[-1].x
        errors.append(float((x / law.alpha(sigmas[0]) - exact).abs()))
    assert 1.7 < errors[0] / errors[1] < 2.3


def test_one_step_at_a_time_equals_diffusers():
    """DDIMInverseScheduler on a closed-form eps; the source lies at the level of timestep 0 (alpha not set to 1)."""
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    scheduler = diffusers.DDIMInverseScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        set_alpha_to_one=False, steps_offset=1,
    )  # fmt: skip
    scheduler.set_timesteps(50)
    abar = scheduler.alphas_cumprod.double()
    scheduler.alphas_cumprod, scheduler.initial_alpha_cumprod = abar, abar[0]
    sigma_of = ((1 - abar) / abar).sqrt()
    denoise = gaussian_denoiser(VARIANCE_EXPLODING, MEAN, COVARIANCE)
    z = torch.randn(4, 2, dtype=torch.float64)
    source = z / abar[0].sqrt()
    for t in scheduler.timesteps:
        # the model's input is z at this timestep, whatever level z really has
        x = z / abar[t].sqrt()
        eps = (x - denoise(x, float(sigma_of[t]))) / sigma_of[t]
        z = scheduler.step(eps, t, z).prev_sample
    sigmas = [*sigma_of[scheduler.timesteps].tolist()[::-1], float(sigma_of[0])]
    ours = source
    for level in pairwise(sigmas[::-1]):
        ours = next(invert(denoise, ours, level[::-1], VARIANCE_EXPLODING)).x
    torch.testing.assert_close(ours, z / abar[scheduler.timesteps[-1]].sqrt(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("law", LAWS)
def test_plain_inversion_evaluates_where_the_steps_below_lead_to(law):
    """Uni-Inv's choice, re-stated, and half of what the last direction changed by, in log sigma."""
    sigmas, source, seen = sigmas_of(law, 6), torch.randn(2, 2, dtype=torch.float64), []
    denoise = gaussian_denoiser(law, MEAN, COVARIANCE)
    x = list(invert(lambda y, sigma: (seen.append(y), denoise(y, sigma))[1], source, sigmas, law))
    latents, up = [source, *(level.x for level in x)], sigmas[::-1]
    slopes = [(y - denoise(y, sigma)) / sigma for y, sigma in zip(seen, up[1:], strict=True)]
    for i in range(1, len(seen)):
        ahead = math.log(up[i + 1] / up[i]) / math.log(up[i] / up[i - 1]) if i > 1 else 0.0
        direction = slopes[i - 1] + 0.5 * ahead * (slopes[i - 1] - slopes[i - 2])
        torch.testing.assert_close(seen[i], latents[i] + (up[i + 1] - up[i]) * direction, rtol=0, atol=1e-9)
        torch.testing.assert_close(latents[i + 1], latents[i] + (up[i + 1] - up[i]) * slopes[i], rtol=0, atol=1e-9)


def six_modes(law):
    """E[x0 | x] of six narrow modes on a circle."""
    angles = torch.arange(6, dtype=torch.float64) * torch.pi / 3
    modes = 1.5 * torch.stack([angles.cos(), angles.sin()], 1)

    def denoise(x, sigma):
        alpha, variance = law.alpha(sigma), 0.02
        total = alpha**2 * variance + law.std(sigma) ** 2
        weights = torch.softmax(-((x[:, None] - alpha * modes) ** 2).sum(-1) / (2 * total), 1)
        posterior = modes + alpha * variance / total * (x[:, None] - alpha * modes)
        return (weights[..., None] * posterior).sum(1)

    return denoise, modes


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("steps, times", [(15, 1.5), (50, 3.0)])
def test_plain_inversion_comes_back_better_than_diffusers(law, steps, times):
    """The round trip's error, at as many calls."""
    denoise, modes = six_modes(law)
    noise = torch.randn(120, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    source, sigmas = modes.repeat(20, 1) + 0.02**0.5 * noise, sigmas_of(law, steps)
    ours, theirs = list(invert(denoise, source, sigmas, law))[-1].x, source
    for level in pairwise(sigmas[::-1]):
        theirs = next(invert(denoise, theirs, level[::-1], law)).x
    errors = [(last(ddim(denoise, x, sigmas, law)) - source).square().mean().sqrt() for x in (ours, theirs)]
    assert times * errors[0] < errors[1]


@pytest.mark.parametrize("law", LAWS)
def test_the_stiff_first_step_takes_few_calls(law):
    """From sigma 0 the denoiser itself is inverted; it keeps all down to 6% of a change. Plain steps take over 80."""
    variances = torch.logspace(0, -4, 40, dtype=torch.float64)
    denoise, calls = counted(gaussian_denoiser(law, torch.zeros_like(variances), torch.diag(variances)))
    source = torch.randn(2, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * variances.sqrt()
    (level,) = invert(denoise, source, [0.04, 0.0], law, 5)
    assert len(calls) <= 20
    assert (denoise(level.x, 0.04) - source).abs().max() < 1e-4


def test_plain_inversion_costs_a_call_a_step_and_refined_stops_at_the_tolerance():
    sigmas = sigmas_of(VARIANCE_EXPLODING, 30)
    source = torch.randn(1, 2, dtype=torch.float64)
    for refine, most in ((0, 30), (8, 3 * 30)):
        denoise, calls = counted(gaussian_denoiser(VARIANCE_EXPLODING, MEAN, COVARIANCE))
        levels = list(invert(denoise, source, sigmas, VARIANCE_EXPLODING, refine))
        assert len(calls) == sum(level.calls for level in levels) <= most


def test_the_residual_is_that_of_an_iterate_that_was_evaluated():
    seen, denoise = [], gaussian_denoiser(VARIANCE_EXPLODING, MEAN, COVARIANCE)

    def watched(x, sigma):
        seen.append((x, sigma))
        return denoise(x, sigma)

    source, sigmas = torch.randn(1, 2, dtype=torch.float64), sigmas_of(VARIANCE_EXPLODING, 6)
    below = source
    for level, sigma_below in zip(
        invert(watched, source, sigmas, VARIANCE_EXPLODING, 4), reversed(sigmas), strict=False
    ):
        residuals = []
        for y, sigma in seen:
            step = y + (sigma_below - sigma) * (y - denoise(y, sigma)) / sigma
            residuals.append(float((below - step).abs().max()) / (1 + sigma**2) ** 0.5)
        assert float(level.residual) == pytest.approx(min(residuals), rel=1e-6)
        below, seen[:] = level.x, []


def has_memory(tensor):
    """Whether it is one piece of memory: other tests' tensors may be sparse, nested or only a shape."""
    return tensor.layout == torch.strided and not tensor.is_nested and not tensor.is_meta


@pytest.mark.parametrize("refine", [0, 5])
def test_memory_is_the_trajectory_and_a_tenth(refine):
    """Tensors alive at the last levels' calls, 50 steps at SD1.5's 512x512, beyond those of sampling."""
    source = torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(0))
    sigmas, law, peak = sigmas_of(VARIANCE_EXPLODING, 50), VARIANCE_EXPLODING, []

    def denoise(x, sigma):
        if sigma >= sigmas[2]:  # looking is slow, and these have the longest trajectory below them
            gc.collect()  # other tests' garbage is not ours
            alive = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
                     for t in gc.get_objects() if type(t) is torch.Tensor and has_memory(t)}  # fmt: skip
            peak[-1] = max(peak[-1], sum(alive.values()))
        return torch.tanh(x) / (1 + sigma**2)

    peak.append(0)
    last(ddim(denoise, source * 14.6, sigmas, law))
    peak.append(0)
    trajectory = [source] + [level.x for level in invert(denoise, source, sigmas, law, refine)]
    size = sum(x.nbytes for x in trajectory)
    assert size == 51 * 65536
    assert peak[1] - peak[0] <= 1.1 * size


def test_a_batch_equals_its_samples_alone():
    denoise, sigmas = gaussian_denoiser(VARIANCE_EXPLODING, MEAN, COVARIANCE), sigmas_of(VARIANCE_EXPLODING, 12)
    source = torch.tensor([[0.3, 0.1], [40.0, -30.0]], dtype=torch.float64)  # one easy, one hard
    together = list(invert(denoise, source, sigmas, VARIANCE_EXPLODING, 5))[-1].x
    alone = [list(invert(denoise, source[i : i + 1], sigmas, VARIANCE_EXPLODING, 5))[-1].x for i in range(2)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-9, atol=1e-9)


def test_a_step_that_does_not_contract_is_damped():
    """Guided far beyond 1: the fixed point diverges; the best iterate is kept."""
    narrow = gaussian_denoiser(VARIANCE_EXPLODING, MEAN, 0.02 * torch.eye(2, dtype=torch.float64))
    wide = gaussian_denoiser(VARIANCE_EXPLODING, MEAN, torch.eye(2, dtype=torch.float64))

    def guided(x, sigma):  # and not linear, so that no acceleration solves it
        return (wide(x, sigma) + 7.5 * (narrow(x, sigma) - wide(x, sigma))) * torch.cos(20 * x)

    sigmas, source = sigmas_of(VARIANCE_EXPLODING, 8), torch.randn(2, 2, dtype=torch.float64)
    levels = list(invert(guided, source, sigmas, VARIANCE_EXPLODING, 4))
    assert all(torch.isfinite(level.x).all() for level in levels)


@pytest.mark.parametrize("refine, tolerance", [(-1, 1e-4), (2, 0.0)])
def test_bad_settings_are_refused(refine, tolerance):
    with pytest.raises(ValueError, match="refine"):
        next(invert(lambda x, s: x, torch.ones(1, 2), [1.0, 0.0], VARIANCE_EXPLODING, refine, tolerance))


@pytest.mark.parametrize("refine", [0, 3])
def test_two_equal_sigmas_are_refused_before_the_model_runs(refine):
    denoise, calls = counted(lambda x, sigma: x)
    with pytest.raises(ValueError, match="two sigmas are equal"):
        next(invert(denoise, torch.ones(1, 2), [2.0, 1.0, 1.0, 0.0], VARIANCE_EXPLODING, refine))
    assert not calls


LATENTS = tuple(torch.randn(1, 4, 16, 16) for _ in range(5))
GOOD = Inversion((9.0, 4.0, 2.0, 1.0, 0.0), LATENTS, VARIANCE_EXPLODING, "SD15", False)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"sigmas": GOOD.sigmas[::-1]}, "rise from"),
        ({"sigmas": (9.0, 9.0, 2.0, 1.0, 0.0)}, "two sigmas are equal"),
        ({"sigmas": GOOD.sigmas[1:]}, "5 latents for 4 sigmas"),
        ({"latents": LATENTS[1:]}, "4 latents for 5 sigmas"),
        ({"latents": (*LATENTS[:-1], LATENTS[0] * torch.nan)}, r"latents\[4\] holds NaN"),
        ({"latents": (*LATENTS[:-1], torch.zeros(2, 4, 16, 16))}, r"latents\[4\] has the shape \(2, 4, "),
        ({"latents": (*LATENTS[:-1], LATENTS[0].half())}, "float16"),
        ({"latents": (torch.zeros(1, 4, 0, 16),) * 5}, "nothing empty"),
        ({"latents": (torch.zeros(4),) * 5}, "any x any is needed"),
        ({"law": RECTIFIED_FLOW}, "no rectified-flow model"),
        ({"law": NoiseLaw(noise_scale=float("nan"))}, "noise_scale nan"),
        ({"latent_format": "SD 1.5"}, "latent format"),
    ],
)
def test_an_inversion_that_is_not_whole_cannot_be_made(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(GOOD, **changes)
