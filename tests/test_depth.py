"""The distance of depths: what it does not see, its ends, the sky, its gradient."""

import pytest
import torch
from steer.samplers.depth import GRADIENTS, depth_distance, size_for

DOUBLE = torch.float64


def rand(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def everywhere(depth):
    return torch.ones_like(depth)


@pytest.mark.parametrize("a, b", [(1.0, 0.0), (3.0, 0.5), (0.01, -2.0)])
def test_scale_and_shift_do_not_matter(a, b):
    depth, wanted = rand(2, 20, 30), rand(2, 20, 30, seed=1)
    expected = depth_distance(depth, wanted, everywhere(depth))
    torch.testing.assert_close(depth_distance(a * depth + b, wanted, everywhere(depth)), expected)
    torch.testing.assert_close(depth_distance(depth, a * wanted + b, everywhere(depth)), expected)
    assert (depth_distance(a * depth + b, depth, everywhere(depth)).abs() < 1e-9).all()


def test_an_inverted_depth_is_the_farthest():
    """What is left after a fit would be 0 for it as well."""
    depth = rand(1, 20, 30)
    assert float(depth_distance(1.0 - 0.5 * depth, depth, everywhere(depth))) == pytest.approx(2.0, abs=1e-9)


def test_unrelated_depths_are_about_1_apart_beside_their_gradients():
    """Correlation 0: what is left is all of the wanted depth, whose gradients count over its deviation."""
    wanted = torch.tensor([[[0.0, 0.0], [1.0, 1.0]]], dtype=DOUBLE)
    depth = wanted.mT
    slopes = (1.0 + 1.0) / 0.5 / 4  # of the finest scale; the others have one pixel
    assert float(depth_distance(depth, wanted, everywhere(depth))) == pytest.approx(1.0 + GRADIENTS * slopes)


def test_the_sky_does_not_count():
    depth, wanted, valid = rand(1, 16, 16), rand(1, 16, 16, seed=1), everywhere(rand(1, 16, 16))
    valid[:, :6] = 0.0
    other, above = depth.clone(), wanted.clone()
    other[:, :6], above[:, :6] = 50.0, -7.0
    expected = depth_distance(depth, wanted, valid)
    torch.testing.assert_close(depth_distance(other, above, valid), expected)
    leaf = depth.clone().requires_grad_()
    (slope,) = torch.autograd.grad(depth_distance(leaf, wanted, valid).sum(), leaf)
    assert not slope[:, :6].any() and slope[:, 6:].any()


def test_the_gradient_is_that_of_finite_differences_and_leaves_scale_and_shift_alone():
    depth, wanted, step = rand(2, 20, 30), rand(2, 20, 30, seed=1), rand(2, 20, 30, seed=2) - 0.5
    leaf = depth.clone().requires_grad_()
    (slope,) = torch.autograd.grad(depth_distance(leaf, wanted, everywhere(depth)).sum(), leaf)
    ends = [float(depth_distance(depth + sign * step, wanted, everywhere(depth)).sum()) for sign in (1e-7, -1e-7)]
    assert (ends[0] - ends[1]) / 2e-7 == pytest.approx(float((slope * step).sum()), rel=1e-5)
    assert (slope.sum((1, 2)).abs() < 1e-9).all() and ((slope * depth).sum((1, 2)).abs() < 1e-9).all()


def test_a_batch_is_its_pictures_alone():
    depth, wanted, valid = rand(3, 20, 30), rand(3, 20, 30, seed=1), (rand(3, 20, 30, seed=2) > 0.3).double()
    each = [depth_distance(*(part[i : i + 1] for part in (depth, wanted, valid))) for i in range(3)]
    torch.testing.assert_close(depth_distance(depth, wanted, valid), torch.cat(each))


@pytest.mark.parametrize("valid", [0.0, 1.0])
def test_flat_depths_and_none_at_all_are_finite(valid):
    leaf, wanted = torch.full((1, 8, 8), 0.3, requires_grad=True), rand(1, 8, 8).float()
    value = depth_distance(leaf, wanted, torch.full((1, 8, 8), valid))
    (slope,) = torch.autograd.grad(value.sum(), leaf)
    assert torch.isfinite(value).all() and torch.isfinite(slope).all()


@pytest.mark.parametrize("size, resolution", [((512, 512), 504), ((512, 768), 504), ((64, 64), 140), ((2000, 10), 140)])
def test_the_network_sees_whole_patches(size, resolution):
    height, width = size_for(size, resolution)
    assert height % 14 == 0 == width % 14 and min(height, width) >= 14 and max(height, width) == resolution
    if min(size) > 100:
        assert height / width == pytest.approx(size[0] / size[1], rel=0.05)
