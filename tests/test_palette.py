"""The sliced Wasserstein distance of colours where it is known: shifts, orders, places, counts and weights."""

import pytest
import torch
from steer.samplers.palette import PIXELS, quantiles, reduced, sliced_wasserstein
from torch.nn.functional import normalize

DOUBLE = torch.float64


def rand(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def randn(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def test_a_shift_is_the_mean_of_its_length_along_the_directions():
    pixels, directions, shift = rand(2, 50, 3), randn(2, 64, 3), torch.tensor([0.3, -0.1, 0.2], dtype=DOUBLE)
    expected = (normalize(directions, dim=-1) @ shift).abs().mean(1)
    torch.testing.assert_close(sliced_wasserstein(pixels + shift, pixels, directions), expected)


def test_over_all_directions_a_shift_is_half_its_length():
    pixels, shift = rand(1, 5, 3), torch.tensor([0.3, -0.1, 0.2], dtype=DOUBLE)
    distance = sliced_wasserstein(pixels + shift, pixels, randn(1, 200_000, 3))
    assert float(distance) == pytest.approx(float(shift.norm()) / 2, rel=5e-3)


def test_only_the_colours_count_not_their_order():
    pixels, directions = rand(2, 50, 3), randn(2, 16, 3)
    shuffled = pixels[:, torch.randperm(50, generator=torch.Generator().manual_seed(2))]
    assert (sliced_wasserstein(shuffled, pixels, directions) < 1e-15).all()


@pytest.mark.parametrize("times", [2, 3])
def test_counts_that_differ(times):
    """Each pixel several times is the same palette; of other counts it is the area between the two step functions."""
    pixels, directions = rand(1, 20, 3), randn(1, 16, 3)
    torch.testing.assert_close(
        sliced_wasserstein(pixels, pixels.repeat(1, times, 1), directions), torch.zeros(1, dtype=DOUBLE)
    )
    a, b = torch.tensor([[[0.0], [1.0]]]), torch.tensor([[[0.0], [0.0], [0.0], [1.0]]])
    assert float((quantiles(a, torch.ones(1, 2), 4) - quantiles(b, torch.ones(1, 4), 4)).abs().mean()) == 0.25


def test_weights_are_how_often_a_pixel_counts():
    pixels, reference, directions = rand(1, 6, 3), rand(1, 12, 3, seed=5), randn(1, 16, 3)
    weight = torch.tensor([[2.0, 0.0, 1.0, 0.0, 0.0, 3.0]])
    repeated = pixels[:, [0, 0, 2, 5, 5, 5]]
    torch.testing.assert_close(
        sliced_wasserstein(pixels, reference, directions, weight), sliced_wasserstein(repeated, reference, directions)
    )
    nothing = sliced_wasserstein(pixels.requires_grad_(), reference, directions, 0 * weight)
    (slope,) = torch.autograd.grad(nothing.sum(), pixels)
    assert torch.isfinite(nothing).all() and torch.isfinite(slope).all()


def test_the_gradient_is_that_of_finite_differences():
    pixels, reference, directions, step = rand(1, 30, 3), rand(1, 41, 3, seed=5), randn(1, 8, 3), randn(1, 30, 3)
    (slope,) = torch.autograd.grad(
        sliced_wasserstein(pixels.requires_grad_(), reference, directions).sum(), pixels
    )  # fmt: skip
    ends = [float(sliced_wasserstein(pixels.detach() + size * step, reference, directions)) for size in (1e-6, -1e-6)]
    assert (ends[0] - ends[1]) / 2e-6 == pytest.approx(float((slope * step).sum()), rel=1e-4)


def test_a_batch_is_its_pictures_alone():
    pixels, reference, directions = rand(3, 30, 3), rand(1, 41, 3, seed=5), randn(3, 8, 3)
    weight = rand(3, 30, seed=6)
    alone = [
        sliced_wasserstein(pixels[i : i + 1], reference, directions[i : i + 1], weight[i : i + 1]) for i in range(3)
    ]
    torch.testing.assert_close(sliced_wasserstein(pixels, reference, directions, weight), torch.cat(alone))


@pytest.mark.parametrize("size", [(64, 64), (1, 7), (512, 512), (100, 3000), (4000, 2), (1080, 1920)])
def test_large_pictures_become_means_of_few_pixels(size):
    picture = rand(1, 3, *size)
    out = reduced(picture)
    assert out.shape[-2] * out.shape[-1] <= PIXELS
    assert torch.equal(out, picture) if size[0] * size[1] <= PIXELS else out.numel() > 3 * PIXELS / 4
    torch.testing.assert_close(out.mean((2, 3)), picture.mean((2, 3)), rtol=0.02, atol=0)
