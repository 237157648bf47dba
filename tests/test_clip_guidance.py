"""The loss of CLIP guidance: its distance in closed form, its cutouts as drawn, its gradient everywhere."""

import pytest
import torch
from steer.samplers.clip_guidance import cutouts, inside, spherical_distance, within_range
from torch.nn.functional import interpolate, normalize


def test_distance_is_half_the_squared_angle():
    a, b = torch.randn(2, 50, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = 0.5 * (normalize(a, dim=-1) * normalize(b, dim=-1)).sum(-1).acos().square()
    torch.testing.assert_close(spherical_distance(3.0 * a, 0.2 * b), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("other", [1.0, -1.0])
def test_its_gradient_is_finite_at_the_ends(other):
    a = torch.ones(1, 8, requires_grad=True)
    distance = spherical_distance(a, torch.full((1, 8), other))
    assert distance.item() == pytest.approx(0.0 if other > 0 else torch.pi**2 / 2, rel=2e-3, abs=1e-6)
    distance.sum().backward()
    assert torch.isfinite(a.grad).all()


def test_its_gradient_points_at_the_target():
    a, b = torch.tensor([[1.0, 0.0]], requires_grad=True), torch.tensor([[0.0, 1.0]])
    spherical_distance(a, b).sum().backward()
    # half the squared angle: its slope is the angle
    torch.testing.assert_close(a.grad, torch.tensor([[0.0, -torch.pi / 2]]))


def ramp(height, width):
    """A picture that says where each pixel was."""
    rows, columns = torch.meshgrid(torch.arange(height) / height, torch.arange(width) / width, indexing="ij")
    return torch.stack([rows, columns, torch.zeros(height, width)])[None]


@pytest.mark.parametrize("height, width", [(128, 128), (96, 160), (160, 96)])
def test_cutouts_are_the_squares_drawn(height, width):
    picture, shorter = ramp(height, width), min(height, width)
    draws = torch.tensor([[[0.0, 0.0, 0.0], [0.999, 0.0, 0.999], [0.5, 0.999, 0.5], [0.0, 0.999, 0.999]]])
    out = cutouts(picture, draws, 64)
    assert out.shape == (1, 4, 3, 64, 64)
    torch.testing.assert_close(out[0, 0], picture[0, :, :64, :64], rtol=0, atol=1e-5)
    largest = picture[:, :, :shorter, width - shorter :]
    expected = interpolate(largest, (64, 64), mode="bicubic", antialias=True)[0]
    torch.testing.assert_close(out[0, 1], expected, rtol=0, atol=1e-5)
    half = 64 + (shorter - 64 + 1) // 2
    assert float(out[0, 2, 0].mean()) == pytest.approx((height - half / 2) / height, abs=0.02)
    torch.testing.assert_close(out[0, 3], picture[0, :, -64:, -64:], rtol=0, atol=1e-5)


def test_cutouts_can_be_kept_large():
    picture, draws = ramp(96, 160), torch.rand(1, 500, 3, generator=torch.Generator().manual_seed(0))
    out = cutouts(picture, draws, 8, smallest=0.75)[0]
    sides = (out[:, 0, -1].mean(-1) - out[:, 0, 0].mean(-1)) * 8 / 7 * 96
    assert 70 < sides.min() < 74 and 94 < sides.max() < 97
    torch.testing.assert_close(cutouts(picture, draws, 80, smallest=0.75), cutouts(picture, draws, 80))


def test_cutouts_of_small_pictures_and_of_each_sample():
    pictures = torch.rand(2, 3, 40, 48, generator=torch.Generator().manual_seed(0))
    draws = torch.rand(2, 5, 3, generator=torch.Generator().manual_seed(1))
    out = cutouts(pictures, draws, 64)
    assert out.shape == (2, 5, 3, 64, 64)
    for item in range(2):
        alone = cutouts(pictures[item : item + 1], draws[item : item + 1], 64)
        assert torch.equal(alone[0], out[item])


def test_the_whole_range_of_sides_and_places_is_drawn():
    picture, draws = ramp(128, 128), torch.rand(1, 4000, 3, generator=torch.Generator().manual_seed(0))
    out = cutouts(picture, draws, 8)[0]
    sides = (out[:, 0, -1].mean(-1) - out[:, 0, 0].mean(-1)) * 8 / 7 * 128
    assert sides.min() < 12 and sides.max() > 120 and abs(float(sides.mean()) - 68) < 3
    middles = out[:, 1].mean((1, 2))
    assert abs(float(middles.mean()) - 0.5) < 0.02 and middles.min() < 0.08 and middles.max() > 0.92


def test_the_range_is_clamped_and_its_gradient_passes():
    pictures = torch.tensor([-0.5, 0.25, 1.5], requires_grad=True)
    out = within_range(pictures)
    assert torch.equal(out, torch.tensor([0.0, 0.25, 1.0]))
    out.sum().backward()
    assert torch.equal(pictures.grad, torch.ones(3))


def test_inside_is_grey_outside():
    pictures = torch.rand(2, 3, 8, 8)
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :4] = 1
    out = inside(pictures, mask)
    assert torch.equal(out[..., :4], pictures[..., :4]) and (out[..., 4:] == 0.5).all()
