"""The formulas against the closed-form posterior of a linear-Gaussian classifier, both laws."""

import pytest
import torch
from steer.samplers.gradient_guidance import (
    at_top,
    change_by_estimate,
    change_by_x,
    limited,
    near_top,
    round_top,
    undecided,
)
from steer.samplers.noise_law import RECTIFIED_FLOW, VARIANCE_EXPLODING, NoiseLaw
from steer.tests.closed_form import gaussian_denoiser

LAWS = {"ve": VARIANCE_EXPLODING, "flow": RECTIFIED_FLOW, "scaled flow": NoiseLaw(True, 1.7)}
LEVELS = {"ve": [0.05, 1.0, 20.0], "flow": [0.05, 0.5, 0.95, 0.999], "scaled flow": [0.05, 0.5, 0.95]}
CASES = [(law, sigma) for law in LAWS for sigma in LEVELS[law]]


class Known:
    """x0 ~ N(mean, covariance) and y = H x0 + r e: p(y | x) and p(x0 | x, y) are Gaussian."""

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        root = torch.randn(6, 6, generator=generator, dtype=torch.float64)
        self.mean = torch.randn(6, generator=generator, dtype=torch.float64)
        self.covariance = root @ root.T / 6 + 0.1 * torch.eye(6, dtype=torch.float64)
        self.reads = torch.randn(2, 6, generator=generator, dtype=torch.float64)
        self.y, self.noise = torch.randn(2, generator=generator, dtype=torch.float64), 0.3

    def loss(self, law, sigma, denoised):
        """`-log p(y | x)` from the estimate, up to a constant."""
        alpha, noise = law.alpha(sigma), law.std(sigma) ** 2
        inner = torch.linalg.inv(alpha**2 * self.covariance + noise * torch.eye(6, dtype=torch.float64))
        left = self.covariance - alpha**2 * self.covariance @ inner @ self.covariance
        spread = self.reads @ left @ self.reads.T + self.noise**2 * torch.eye(2, dtype=torch.float64)
        gap = self.y - denoised @ self.reads.T
        return 0.5 * torch.einsum("bi,ij,bj->b", gap, torch.linalg.inv(spread), gap)

    def posterior(self):
        """Mean and covariance of x0 given y."""
        spread = self.reads @ self.covariance @ self.reads.T + self.noise**2 * torch.eye(2, dtype=torch.float64)
        gain = self.covariance @ self.reads.T @ torch.linalg.inv(spread)
        return self.mean + gain @ (
            self.y - self.reads @ self.mean
        ), self.covariance - gain @ self.reads @ self.covariance


@pytest.mark.parametrize("law, sigma", CASES)
def test_scale_1_is_the_conditional_denoiser(law, sigma):
    known, law = Known(), LAWS[law]
    x = torch.randn(3, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
    denoised = gaussian_denoiser(law, known.mean, known.covariance)(x, sigma)
    (gradient,) = torch.autograd.grad(known.loss(law, sigma, denoised).sum(), x)
    expected = gaussian_denoiser(law, *known.posterior())(x, sigma)
    torch.testing.assert_close(denoised + change_by_x(gradient, sigma, law), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("law, sigma", CASES)
def test_the_estimate_alone_is_exact_for_independent_data_of_unit_variance(law, sigma):
    law = LAWS[law]
    denoise = gaussian_denoiser(law, torch.full((4,), 0.3, dtype=torch.float64), torch.eye(4, dtype=torch.float64))
    x = torch.randn(2, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
    denoised = denoise(x, sigma)
    loss = (denoised - 1.0).square().sum()
    by_x, by_estimate = torch.autograd.grad(loss, (x, denoised))
    torch.testing.assert_close(change_by_estimate(by_estimate, sigma, law), change_by_x(by_x, sigma, law))


FLOWS = [law for law in LAWS.values() if law.flow]


def change_at_top(law, x, mean, gradient_at):
    """The weighted sum; `gradient_at(x, sigma)` is of -log p(y | x)."""
    at = (w * gradient_at(near, sigma) for near, sigma, w in round_top(x, mean.expand_as(x), 1.0, law))
    return change_by_x(sum(at) - 0.5 * gradient_at(x, 1.0), near_top(law), law)


@pytest.mark.parametrize("law", FLOWS)
def test_at_a_flow_models_sigma_1_the_change_is_the_limit(law):
    """Of the reading, and of a class in a mixture that is not symmetric: E[x0 | y] - E[x0], whatever x is."""
    known = Known()
    denoise = gaussian_denoiser(law, known.mean, known.covariance)
    x = law.noise_scale * torch.randn(3, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def of_reading(x, sigma):
        x = x.clone().requires_grad_()
        return torch.autograd.grad(known.loss(law, sigma, denoise(x, sigma)).sum(), x)[0]

    expected = (known.posterior()[0] - known.mean).expand_as(x)
    torch.testing.assert_close(change_at_top(law, x, known.mean, of_reading), expected, rtol=1e-4, atol=1e-4)

    shares, modes, spread = torch.tensor([0.3, 0.7]).double(), torch.stack([known.mean, -0.5 * known.mean]), 0.4
    mean = shares @ modes

    def of_class(x, sigma):
        x, variance = x.clone().requires_grad_(), (law.alpha(sigma) * spread) ** 2 + law.std(sigma) ** 2
        gaps = (x[:, None] - law.alpha(sigma) * modes).square().sum(-1)
        log_probs = (shares.log() - gaps / (2 * variance)).log_softmax(-1)[:, 0]
        return torch.autograd.grad(-log_probs.sum(), x)[0]

    expected = (modes[0] - mean).expand_as(x)
    torch.testing.assert_close(change_at_top(law, x, mean, of_class), expected, rtol=1e-4, atol=1e-4)


def test_what_the_gradients_are_at_the_top_is_taken_off():
    """A trained model's are not quite 0 there, and are divided by alpha."""
    law, x, mean = RECTIFIED_FLOW, torch.randn(2, 4), torch.zeros(4)

    def exact(x, sigma):
        return -law.alpha(sigma) * torch.ones_like(x)

    def trained(x, sigma):
        return exact(x, sigma) + 0.1 + 0.05 * x

    given = [change_at_top(law, x, mean, each) for each in (exact, trained)]
    torch.testing.assert_close(*given, rtol=1e-3, atol=1e-3)


def test_the_top_is_a_flow_models_alone():
    assert at_top(1.0, RECTIFIED_FLOW) and not at_top(0.999, RECTIFIED_FLOW) and not at_top(80.0, VARIANCE_EXPLODING)
    gradient = torch.ones(1, 4)
    assert torch.equal(change_by_estimate(gradient, 1.0, RECTIFIED_FLOW), -gradient)


@pytest.mark.parametrize("law, sigma", CASES)
def test_limit(law, sigma):
    law = LAWS[law]
    change = torch.tensor([1e-6, 5.0, 1e30])[:, None, None, None] * torch.randn(
        3, 4, 8, 8, generator=torch.Generator().manual_seed(0)
    )
    out, most = limited(change, sigma, law, 0.5), 0.5 * undecided(sigma, law) ** 0.5
    assert torch.equal(out[0], change[0])
    for sample, given in zip(out[1:], change[1:], strict=True):
        assert float(sample.square().mean().sqrt()) == pytest.approx(most, rel=1e-4)
        torch.testing.assert_close(sample / sample.norm(), given.double().div(given.double().norm()).float())


def test_limit_counts_the_mask_alone():
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :2] = 1
    change = torch.ones(2, 4, 8, 8)
    change[..., 2:] = 1e6
    out = limited(change, 1.0, VARIANCE_EXPLODING, 10.0, mask)
    assert torch.equal(out, mask.expand_as(out))
    assert torch.equal(limited(torch.zeros(1, 4, 8, 8), 1.0, VARIANCE_EXPLODING, 0.0), torch.zeros(1, 4, 8, 8))
