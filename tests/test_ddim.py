import pytest
import torch
from steer.samplers.ddim import ddim
from steer.samplers.noise_law import RECTIFIED_FLOW, VARIANCE_EXPLODING
from steer.tests.closed_form import gaussian_denoiser, last, log_spaced, standard_noise

MEAN = torch.tensor([0.5, -1.0], dtype=torch.float64)
COVARIANCE = torch.tensor([[1.0, 0.6], [0.6, 0.5]], dtype=torch.float64)


def test_converges_to_the_probability_flow():
    """PF-ODE of a Gaussian: along each principal axis the deviation scales by sqrt((S + s^2)/(S + s0^2))."""
    values, axes = torch.linalg.eigh(COVARIANCE)
    x = MEAN + torch.randn(8, 2, dtype=torch.float64) * 20
    exact = MEAN + (((x - MEAN) @ axes) * (values / (values + 400.0)).sqrt()) @ axes.T
    denoise = gaussian_denoiser(VARIANCE_EXPLODING, MEAN, COVARIANCE)
    errors = [
        (last(ddim(denoise, x, log_spaced(20.0, 0.002, steps), VARIANCE_EXPLODING)) - exact).abs().max()
        for steps in (200, 400)
    ]
    assert errors[1] < 0.02
    assert 1.8 < errors[0] / errors[1] < 2.2  # first order


@pytest.mark.parametrize("law, top", [(VARIANCE_EXPLODING, 40.0), (RECTIFIED_FLOW, 1.0)])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_samples_the_data_distribution(law, top, eta):
    levels = log_spaced(40.0, 0.002, 300)
    # the same levels for the flow law, by sigma / (1 + sigma)
    sigmas = levels if not law.flow else [top, *(level / (1 + level) for level in levels[1:])]
    noise = standard_noise(0)
    x = law.std(sigmas[0]) * noise(torch.zeros(20_000, 2, dtype=torch.float64))
    samples = last(ddim(gaussian_denoiser(law, MEAN, COVARIANCE), x, sigmas, law, eta, noise))
    torch.testing.assert_close(samples.mean(0), MEAN, atol=0.05, rtol=0)
    torch.testing.assert_close(samples.T.cov(), COVARIANCE, atol=0.04, rtol=0)


def test_equals_diffusers():
    """DDIMScheduler (leading timesteps, offset 1, alpha at 0 not set to 1) on a closed-form eps, through z and t."""
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    scheduler = diffusers.DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        set_alpha_to_one=False, steps_offset=1,
    )  # fmt: skip
    scheduler.set_timesteps(50)
    abar = scheduler.alphas_cumprod.double()
    scheduler.alphas_cumprod, scheduler.final_alpha_cumprod = abar, abar[0]
    sigma_of = ((1 - abar) / abar).sqrt()
    denoise = gaussian_denoiser(VARIANCE_EXPLODING, MEAN, COVARIANCE)
    x = MEAN + torch.randn(4, 2, dtype=torch.float64) * sigma_of[scheduler.timesteps[0]]
    z = x * abar[scheduler.timesteps[0]].sqrt()
    for t in scheduler.timesteps:
        sigma = float(sigma_of[t])
        eps = (z / abar[t].sqrt() - denoise(z / abar[t].sqrt(), sigma)) / sigma
        z = scheduler.step(eps, t, z).prev_sample
    sigmas = [*sigma_of[scheduler.timesteps].tolist(), float(sigma_of[0])]
    ours = last(ddim(denoise, x, sigmas, VARIANCE_EXPLODING))
    torch.testing.assert_close(ours, z / abar[0].sqrt(), rtol=1e-5, atol=1e-5)


def test_steps_are_yielded_with_their_level():
    sigmas = [3.0, 1.0, 0.0]
    steps = list(ddim(lambda x, sigma: x * 0, torch.ones(1, 2), sigmas, VARIANCE_EXPLODING))
    assert [step.sigma for step in steps] == sigmas[1:]
    assert torch.equal(steps[-1].x, steps[-1].denoised)


@pytest.mark.parametrize("eta, noise", [(-0.1, None), (1.5, torch.zeros_like), (0.5, None)])
def test_bad_eta_is_refused_before_the_model_runs(eta, noise):
    def never(x, sigma):
        raise AssertionError("the model was called")

    with pytest.raises(ValueError, match="eta"):
        next(ddim(never, torch.ones(1, 2), [1.0, 0.0], VARIANCE_EXPLODING, eta, noise))
