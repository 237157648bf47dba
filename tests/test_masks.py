from fractions import Fraction
from itertools import pairwise
from math import ceil, floor

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from steer.samplers.masks import (
    check_axes,
    check_mask,
    composite,
    dilate,
    for_latents,
    keep,
    lies_over,
    paints,
    same_picture,
)

SIDE, CELL = st.integers(1, 1400), st.sampled_from([4, 8, 16, 32])
QUICK = settings(deadline=None, max_examples=300, derandomize=True)


@pytest.mark.parametrize(
    "mask, word", [(torch.zeros(1, 0), "holds nothing"), (torch.tensor([0.0, 1.5]), "from 0"),
                   (torch.tensor([-0.2, 1.0]), "from 0"), (torch.tensor([1.0, float("nan")]), "0 to|nan")]
)  # fmt: skip
def test_bad_masks_are_refused(mask, word):
    with pytest.raises(ValueError, match=word):
        check_mask(mask)


def test_good_masks_pass():
    check_mask(torch.tensor([0.0, 0.3, 1.0]))
    check_mask(torch.ones(2, 2))
    check_mask(torch.zeros(2, 2))


def whole(grid, cell, part):
    """How many cells a VAE makes of each side: `part` of what is left over counts or not."""
    return tuple(max(1, part(Fraction(side) / cell)) for side in grid)


@QUICK
@given(height=SIDE, width=SIDE, cell=CELL, part=st.sampled_from([floor, ceil]))
def test_a_pictures_own_mask_is_known(height, width, cell, part):
    assume(min(height, width) >= cell)
    picture, latent = (height, width), whole((height, width), cell, part)
    assert same_picture(picture, latent) and same_picture(latent, picture)
    assert same_picture(latent, latent) and same_picture((3 * height, 3 * width), latent)


@QUICK
@given(mask=st.tuples(SIDE, SIDE), latent=st.tuples(st.integers(1, 180), st.integers(1, 180)))
def test_a_mask_is_known_exactly_where_a_cell_exists(mask, latent):
    """Tried out: every cell that makes another number of whole ones of a side, and one between each two of those."""
    (height, width), (rows, columns) = mask, latent
    assume(height * width > rows * columns)
    edges = {Fraction(side, n + more) for side, n in ((height, rows), (width, columns)) for more in (-1, 0, 1)
             if n + more}  # fmt: skip
    edges = sorted({*edges, Fraction(1, 2000), Fraction(2000)})
    cells = [*edges, *((low + high) / 2 for low, high in pairwise(edges))]
    known = any(tuple(part(side / cell) for side in mask) == latent for cell in cells for part in (floor, ceil))
    assert same_picture(mask, latent) == known


@pytest.mark.parametrize("width, height", [(200, 151), (1000, 750), (1920, 1079), (1080, 607), (720, 405), (1024, 767)])
def test_masks_of_usual_pictures(width, height):
    latent = height // 8, width // 8
    assert same_picture((height, width), latent)
    for other in ((width, height), (height, width * 9 // 8), (height * 9 // 8, width), (512, 512)):
        assert not same_picture(other, latent)


def test_an_empty_mask_and_a_single_value_lie_over_any_picture():
    assert lies_over(torch.zeros(1, 64, 64), 18, 25) and lies_over(torch.ones(1, 1, 3, 1, 1), 18, 25)
    assert not lies_over(torch.ones(1, 64, 64), 18, 25)
    assert not paints(torch.zeros(2, 2)) and not paints(torch.full((2, 2), -1e-5)) and paints(torch.tensor(0.1))


@pytest.mark.parametrize("shape", [(2, 40, 48, 1), (40, 48, 1), (1, 3, 40, 48), (2, 40, 48, 3), (48,), (1, 0, 48)])
def test_other_axes_are_refused(shape):
    with pytest.raises(ValueError, match=r"\(batch, height, width\) is needed"):
        check_axes(torch.ones(shape), 48)


@pytest.mark.parametrize("shape", [(40, 48), (2, 40, 48), (2, 1, 40, 48), (1, 1, 3, 40, 48), (1, 1, 3, 1, 1)])
def test_the_usual_axes(shape):
    check_axes(torch.ones(shape), 48)


def test_a_picture_one_wide_has_masks_one_wide():
    check_axes(torch.ones(2, 8, 1), 1)


def numbered(count, *sides):
    """Masks that can be told apart: (count, height, width)."""
    return torch.arange(1.0, count + 1).div(count).view(-1, 1, 1).expand(count, *sides)


@QUICK
@given(batch=st.integers(1, 4), frames=st.integers(2, 5), step=st.integers(2, 8), data=st.data())
def test_each_clip_and_each_frame_gets_its_own_masks(batch, frames, step, data):
    """Where a number of masks could mean two things, the first of these is meant."""
    long = step * (frames - 1) + 1  # frames of the picture
    readings = (1, 1), (1, frames), (batch, 1), (batch, frames), (batch, long), (1, long)
    clips, parts = data.draw(st.sampled_from(readings))
    clips, parts = next(each for each in readings if each[0] * each[1] == clips * parts)
    among_clips = (clips * parts) % batch == 0 and (clips * parts // batch - 1) % (frames - 1) == 0
    assume(parts != long or (batch % (clips * parts) and not (clips == 1 < batch and among_clips)))
    masks = numbered(clips * parts, 6, 5)
    out = for_latents(data.draw(st.sampled_from([masks, masks[:, None]])), (batch, 16, frames, 6, 5))
    for clip, seen in enumerate(out.expand(batch, 1, frames, 6, 5)[:, 0]):
        own = masks[parts * clip : parts * clip + parts] if clips > 1 else masks
        for frame in range(frames):
            of_frame = own[min(frame, parts - 1)][None]
            if parts not in (1, frames):
                of_frame = own[max(0, step * (frame - 1) + 1) : step * frame + 1]
            assert torch.equal(seen[frame], of_frame.amax(0))


@QUICK
@given(batch=st.integers(1, 6), count=st.integers(1, 9), dimensions=st.sampled_from([4, 5]))
def test_pictures_share_one_mask_or_have_their_own(batch, count, dimensions):
    """Of latents with and without a frame's axis alike."""
    shape = (batch, 16, 6, 5) if dimensions == 4 else (batch, 16, 1, 6, 5)
    masks = numbered(count, 6, 5)
    if batch % count:
        with pytest.raises(ValueError, match=f"{count} masks for a batch of {batch} latents; "):
            for_latents(masks, shape)
    else:
        out = for_latents(masks, shape)
        assert out.ndim == dimensions and torch.equal(out.reshape(count, 6, 5), masks)


@pytest.mark.parametrize("shape, masks", [((2, 16, 3, 6, 5), 4), ((1, 16, 4, 6, 5), 3), ((2, 16, 4, 6, 5), 5)])
def test_other_numbers_of_frames_are_refused(shape, masks):
    with pytest.raises(ValueError, match=f"{masks} masks for a batch of . latents of . frames.*each frame"):
        for_latents(numbered(masks, 6, 5), shape)


def test_where_nothing_is_generated_the_source_is_exact_even_beside_nan():
    known, mask = torch.randn(2, 3), torch.tensor([[0.0, 1.0, 0.5]])
    denoised = torch.tensor([[float("nan"), 2.0, 4.0]]).expand(2, 3)
    mixed = composite(denoised, known, mask)
    assert torch.equal(mixed[:, 0], known[:, 0]) and torch.equal(mixed[:, 1], denoised[:, 1])
    torch.testing.assert_close(mixed[:, 2], 2.0 + 0.5 * known[:, 2])
    assert torch.equal(keep(denoised, known, mask)[:, 0], known[:, 0])


def test_dilation_is_a_square():
    mask = torch.zeros(1, 1, 9, 9)
    mask[..., 4, 4] = 0.5
    grown = dilate(mask, 2)
    assert grown.sum() == 25 * 0.5 and torch.equal(grown[..., 2:7, 2:7], torch.full((1, 1, 5, 5), 0.5))
