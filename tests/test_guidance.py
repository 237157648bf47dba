import pytest
import torch
from steer.samplers.guidance import branch_weights, cfg, cfg_with_empty
from steer.samplers.noise_law import VARIANCE_EXPLODING
from steer.tests.closed_form import gaussian_denoiser

SIGMA = 1.3


def score_and_denoised(mean, variance):
    """The score of N(mean, variance + sigma^2) at x, and the denoiser's estimate there."""
    mean = torch.tensor([mean], dtype=torch.float64)
    x = torch.linspace(-4, 4, 9, dtype=torch.float64)[:, None]
    denoise = gaussian_denoiser(VARIANCE_EXPLODING, mean, torch.tensor([[variance]], dtype=torch.float64))
    return x, -(x - mean) / (variance + SIGMA**2), denoise(x, SIGMA)


def test_cfg_is_the_mix_of_scores():
    x, score_negative, negative = score_and_denoised(0.0, 1.0)
    _, score_positive, positive = score_and_denoised(2.0, 0.4)
    for scale in (0.0, 0.5, 1.0, 7.5):
        exact = x + SIGMA**2 * ((1 - scale) * score_negative + scale * score_positive)
        torch.testing.assert_close(cfg(positive, negative, scale), exact, rtol=0, atol=1e-12)
    torch.testing.assert_close(cfg(positive, negative, 1.0), positive)
    assert torch.equal(cfg(positive, negative, 0.0), negative)
    assert torch.equal(cfg(positive, positive, 7.5), positive)


@pytest.mark.parametrize("scale, negative_scale", [(7.5, 1.0), (1.0, 0.5), (0.0, 1.0), (2.0, 1.0), (3.0, 0.0)])
def test_three_terms_are_the_mix_of_scores(scale, negative_scale):
    x, score_empty, empty = score_and_denoised(0.0, 1.0)
    _, score_positive, positive = score_and_denoised(2.0, 0.4)
    _, score_negative, negative = score_and_denoised(-1.0, 0.7)
    score = score_empty + scale * (score_positive - score_empty) - negative_scale * (score_negative - score_empty)
    ours = cfg_with_empty(positive, negative, empty, scale, negative_scale)
    torch.testing.assert_close(ours, x + SIGMA**2 * score, rtol=0, atol=1e-12)
    weights = branch_weights(scale, negative_scale)
    torch.testing.assert_close(ours, sum(w * d for w, d in zip(weights, (positive, negative, empty), strict=True)))
    # a branch that weighs nothing may hold anything
    spared = [d if w else torch.full_like(d, 0.0) for w, d in zip(weights, (positive, negative, empty), strict=True)]
    torch.testing.assert_close(cfg_with_empty(*spared, scale, negative_scale), ours)
