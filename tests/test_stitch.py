import pytest
import torch
from steer.pictures.stitch import feathered, stitch, to_linear, to_srgb


def pictures(batch=1, height=24, width=30, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(batch, height, width, 3, generator=generator) for _ in range(2)]


def square(height=24, width=30):
    mask = torch.zeros(1, height, width)
    mask[:, 4:20, 6:26] = 1
    return mask


def test_srgb_by_its_own_definition():
    """Values of the standard: the linear part, and one half of either."""
    assert float(to_linear(torch.tensor(0.04))) == pytest.approx(0.04 / 12.92)
    assert float(to_linear(torch.tensor(0.5))) == pytest.approx(0.2140411, abs=1e-6)
    assert float(to_srgb(torch.tensor(0.5))) == pytest.approx(0.7353570, abs=1e-6)
    values = torch.linspace(-0.2, 1.3, 1001, dtype=torch.float64)
    torch.testing.assert_close(to_srgb(to_linear(values)), values, rtol=0, atol=1e-6)


def test_half_of_white_on_black_is_half_the_light():
    black, white = torch.zeros(1, 1, 1, 3), torch.ones(1, 1, 1, 3)
    mixed = stitch(black, white, torch.full((1, 1, 1), 0.5))
    assert float(mixed[0, 0, 0, 0]) == pytest.approx(0.7353570, abs=1e-6)


@pytest.mark.parametrize("feather", [0, 1, 3, 8])
def test_exactly_the_source_outside_and_the_edit_inside(feather):
    source, edited = pictures()
    mask = feathered(square(), feather)
    out = stitch(source, edited, mask)
    assert torch.equal(out[mask == 0], source[mask == 0]) and torch.equal(out[mask == 1], edited[mask == 1])
    between = (mask > 0) & (mask < 1)
    assert bool(between.any()) == (feather > 0)
    low, high = torch.minimum(source, edited)[between], torch.maximum(source, edited)[between]
    assert (out[between] >= low - 1e-6).all() and (out[between] <= high + 1e-6).all()


def test_equal_pictures_stay():
    source, _ = pictures()
    torch.testing.assert_close(stitch(source, source, torch.rand(1, 24, 30)), source, rtol=0, atol=1e-6)


@pytest.mark.parametrize("feather", [1, 2, 5])
def test_the_ramp_lies_inside_and_is_as_wide_as_asked(feather):
    mask = square()
    soft = feathered(mask, feather)
    assert (soft <= mask).all() and (soft[mask == 0] == 0).all()
    row = soft[0, 12, 6:16]
    assert (row[:feather] > 0).all() and (row[:feather] < 1).all() and (row[feather:] == 1).all()
    assert (row.diff() >= 0).all()
    # a smoothstep of the distance
    along = torch.arange(1, feather + 1) / (feather + 1)
    torch.testing.assert_close(row[:feather], along**2 * (3 - 2 * along), rtol=0, atol=1e-6)


def test_a_negative_feather_ramps_outside():
    mask = square()
    soft = feathered(mask, -3)
    assert (soft >= mask).all() and (soft[mask == 1] == 1).all()
    torch.testing.assert_close(soft[0, 12, 2:6].flip(0), feathered(mask, 3)[0, 12, 5:9].flip(0), rtol=0, atol=1e-6)
    assert (soft[0, 12, :3] == 0).all() and (soft[0, 12, 3:6] > 0).all()
    assert torch.equal(feathered(torch.zeros(1, 9, 9), -4), torch.zeros(1, 9, 9))


def test_no_ramp_at_the_picture_border():
    mask = torch.zeros(1, 20, 20)
    mask[:, :, 10:] = 1
    soft = feathered(mask, 4)
    assert (soft[0, :, 14:] == 1).all() and torch.equal(soft[0, 0], soft[0, 10])
    assert torch.equal(feathered(torch.ones(1, 20, 20), 7), torch.ones(1, 20, 20))


def test_no_feather_is_the_mask_and_soft_masks_stay_soft():
    soft = torch.rand(2, 9, 11)
    assert torch.equal(feathered(soft, 0), soft)
    assert (feathered(soft, 3) <= soft + 1e-6).all()
    # half a mask becomes half of its ramp
    torch.testing.assert_close(feathered(0.5 * square(), 3), 0.5 * feathered(square(), 3), rtol=0, atol=1e-6)


def test_a_batch_is_its_singles():
    source, edited = pictures(3)
    mask = torch.rand(3, 24, 30).round()
    both = stitch(source, edited, feathered(mask, 2))
    for index in range(3):
        part = slice(index, index + 1)
        single = stitch(source[part], edited[part], feathered(mask[part], 2))
        torch.testing.assert_close(both[part], single, rtol=0, atol=1e-6)  # powers round by where they lie in memory


def test_values_out_of_range_stay_finite():
    source, edited = (4 * picture - 2 for picture in pictures())
    assert torch.isfinite(stitch(source, edited, torch.rand(1, 24, 30))).all()
