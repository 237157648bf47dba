"""Gram matrices: what they do not see, their distance, their gradient."""

import pytest
import torch
from steer.samplers.style import gram, style_distance

DOUBLE = torch.float64


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def ones(states):
    return torch.ones_like(states[..., 0])


def test_it_is_the_mean_of_products():
    states = randn(2, 5, 3)
    expected = torch.stack([sum(torch.outer(token, token) for token in each) / 5 for each in states])
    torch.testing.assert_close(gram(states, ones(states)), expected)


def test_the_order_of_tokens_does_not_matter():
    states = randn(2, 30, 8)
    shuffled = states[:, torch.randperm(30, generator=torch.Generator().manual_seed(1))]
    torch.testing.assert_close(gram(shuffled, ones(states)), gram(states, ones(states)), rtol=1e-12, atol=1e-12)


def test_weights_are_how_often_a_token_counts():
    states, weight = randn(1, 4, 3), torch.tensor([[2.0, 0.0, 1.0, 0.0]], dtype=DOUBLE)
    repeated = states[:, [0, 0, 2]]
    torch.testing.assert_close(gram(states, weight), gram(repeated, ones(repeated)))
    assert torch.equal(gram(states, 0 * weight), torch.zeros(1, 3, 3, dtype=DOUBLE))


def test_the_distance_is_the_mean_square():
    states = randn(2, 30, 8)
    g = gram(states, ones(states))
    assert torch.equal(style_distance(g, g), torch.zeros(2, dtype=DOUBLE))
    torch.testing.assert_close(style_distance(g, g[:1] * 0), (g**2).sum((1, 2)) / 64)
    torch.testing.assert_close(style_distance(4.0 * g, 0.0 * g), 16.0 * style_distance(g, 0.0 * g))


def test_the_gradient_is_that_of_finite_differences():
    states, other, step = randn(1, 12, 4), randn(1, 9, 4, seed=1), randn(1, 12, 4, seed=2)

    def distance(states):
        return style_distance(gram(states, ones(states)), gram(other, ones(other)))

    leaf = states.clone().requires_grad_()
    (slope,) = torch.autograd.grad(distance(leaf).sum(), leaf)
    difference = float(distance(states + 1e-6 * step) - distance(states - 1e-6 * step)) / 2e-6
    assert difference == pytest.approx(float((slope * step).sum()), rel=1e-6)
