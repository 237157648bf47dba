import pytest
import torch
from steer.samplers.noise_law import RECTIFIED_FLOW, VARIANCE_EXPLODING, NoiseLaw
from steer.tests.closed_form import standard_noise

LAWS = [VARIANCE_EXPLODING, RECTIFIED_FLOW, NoiseLaw(flow=True, noise_scale=1.7)]


@pytest.mark.parametrize("law", LAWS)
def test_step_without_noise_is_euler(law):
    x, denoised = torch.randn(2, 3, 4, dtype=torch.float64), torch.randn(2, 3, 4, dtype=torch.float64)
    euler = x + (0.3 - 0.8) * (x - denoised) / 0.8
    torch.testing.assert_close(law.step(x, denoised, 0.8, 0.3), euler, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("law", LAWS)
def test_step_to_zero_is_the_estimate(law):
    x, denoised = torch.randn(2, 4), torch.randn(2, 4)
    assert torch.equal(law.step(x, denoised, 0.8, 0.0, 1.0, standard_noise(0)), denoised)


def test_eta_one_is_the_ddpm_posterior():
    """Mean and variance of q(x_t-1 | x_t, x0), Ho et al. 2020 eq. 7, from the betas, in the host's scale."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    abar = (1 - betas).cumprod(0)
    sigmas = ((1 - abar) / abar).sqrt()
    t = 600
    x0, x = torch.tensor([[0.7]], dtype=torch.float64), torch.tensor([[3.0]], dtype=torch.float64)
    z = x * abar[t].sqrt()
    mean = abar[t - 1].sqrt() * betas[t] / (1 - abar[t]) * x0
    mean += (1 - betas[t]).sqrt() * (1 - abar[t - 1]) / (1 - abar[t]) * z
    variance = (1 - abar[t - 1]) / (1 - abar[t]) * betas[t]
    at, to = float(sigmas[t]), float(sigmas[t - 1])
    ours_mean = VARIANCE_EXPLODING.step(x, x0, at, to, 1.0, torch.zeros_like)
    ours_std = VARIANCE_EXPLODING.step(x, x0, at, to, 1.0, torch.ones_like) - ours_mean
    torch.testing.assert_close(ours_mean, mean / abar[t - 1].sqrt(), rtol=1e-10, atol=0)
    torch.testing.assert_close(ours_std**2, (variance / abar[t - 1]).reshape(1, 1), rtol=1e-8, atol=0)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("at, to", [(0.9, 0.7), (1.0, 0.7), (0.5, 0.1)])
def test_a_step_with_the_true_picture_lands_on_the_next_level(law, at, to):
    """x at level `at` of a fixed x0, stepped with D = x0 at any eta: noise of exactly std(to) about alpha(to) x0."""
    noise = standard_noise(1)
    x0 = torch.full((200_000, 1), 2.0, dtype=torch.float64)
    x = law.noised(x0, at, noise(x0))
    for eta in (0.0, 0.5, 1.0):
        stepped = law.step(x, x0, at, to, eta, noise)
        assert abs(stepped.mean() - law.alpha(to) * 2.0) < 0.01
        assert abs(stepped.std() / law.std(to) - 1) < 0.01


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("at, to", [(0.3, 0.8), (0.5, 1.0)])
def test_a_jump_lands_on_the_next_level(law, at, to):
    noise = standard_noise(2)
    x0 = torch.full((200_000, 1), 2.0, dtype=torch.float64)
    jumped = law.jump(law.noised(x0, at, noise(x0)), at, to, noise)
    assert abs(jumped.mean() - law.alpha(to) * 2.0) < 0.01
    assert abs(jumped.std() / law.std(to) - 1) < 0.01


def test_flow_is_the_exploding_law_in_the_ratio():
    """X = x / (1 - sigma), Sigma = sigma / (1 - sigma) turns the flow step into the exploding one, at any eta."""
    x, denoised = torch.randn(5, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    for eta in (0.0, 0.4, 1.0):
        flow = RECTIFIED_FLOW.step(x, denoised, 0.9, 0.7, eta, torch.ones_like) / (1 - 0.7)
        exploding = VARIANCE_EXPLODING.step(x / 0.1, denoised, 9.0, 0.7 / 0.3, eta, torch.ones_like)
        torch.testing.assert_close(flow, exploding, rtol=1e-10, atol=1e-12)
