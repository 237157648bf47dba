import logging

import pytest
import torch
from steer.nodes.picture_inputs import mask_like
from steer.nodes.poisson_blend import SteerPoissonBlend
from steer.nodes.stitch import SteerStitch
from steer.tests import checks, oracles

BOTH = {
    "stitch": lambda *given: SteerStitch.execute(*given, 4)[0],
    "poisson": lambda *given: SteerPoissonBlend.execute(*given)[0],
}


def pictures(batch=1, height=40, width=48, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [0.3 + 0.4 * torch.rand(batch, height, width, 3, generator=generator) for _ in range(2)]


def masks(batch=1, height=40, width=48):
    mask = torch.zeros(batch, height, width)
    for index in range(batch):
        mask[index, 4 : 30 + index, 8 + index : 40] = 1
    return mask


@pytest.mark.parametrize("node", BOTH)
def test_outside_the_mask_is_the_source_and_deep_inside_the_stitch_is_the_edit(node):
    (source, edited), mask = pictures(), masks()
    out = BOTH[node](source, edited, mask)
    assert torch.equal(out[mask == 0], source[mask == 0])
    if node == "stitch":
        assert torch.equal(out[:, 10:24, 14:34], edited[:, 10:24, 14:34])


@pytest.mark.parametrize("node", BOTH)
def test_a_batch_is_its_singles_and_one_serves_all(node):
    (source, edited), mask = pictures(3), masks(3)
    together = BOTH[node](source, edited, mask)
    singles = torch.cat([BOTH[node](*(given[i : i + 1] for given in (source, edited, mask))) for i in range(3)])
    torch.testing.assert_close(together, singles, rtol=0, atol=1e-6)
    shared = BOTH[node](source[:1], edited, mask[:1])
    expected = torch.cat([BOTH[node](source[:1], edited[i : i + 1], mask[:1]) for i in range(3)])
    torch.testing.assert_close(shared, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("node", BOTH)
def test_the_inputs_are_left_alone(node):
    given = [*pictures(2), masks(2)]
    before = [tensor.clone() for tensor in given]
    BOTH[node](*given)
    assert all(torch.equal(a, b) for a, b in zip(given, before, strict=True))


@pytest.mark.parametrize("node", BOTH)
def test_an_empty_mask_is_the_source_and_a_full_one_the_edit(node, caplog):
    source, edited = pictures()
    with caplog.at_level(logging.WARNING, "steer"):
        assert torch.equal(BOTH[node](source, edited, torch.zeros(1, 40, 48)), source)
        assert "the mask is empty" in caplog.text
        assert torch.equal(BOTH[node](source, edited, torch.ones(1, 40, 48)), edited)


def test_a_soft_edge_outside_leaves_the_whole_edit():
    (source, edited), mask = pictures(), masks()
    out = SteerStitch.execute(source, edited, mask, -4)[0]
    far = torch.nn.functional.max_pool2d(mask, 9, stride=1, padding=4) == 0
    assert torch.equal(out[mask == 1], edited[mask == 1]) and torch.equal(out[far], source[far])
    assert not torch.equal(out[mask == 0], source[mask == 0])


def test_a_mask_thinner_than_its_feather_is_told(caplog):
    source, edited = pictures()
    mask = torch.zeros(1, 40, 48)
    mask[:, 20:23] = 1
    with caplog.at_level(logging.WARNING, "steer"):
        SteerStitch.execute(source, edited, mask, 1)
        assert "thinner" not in caplog.text
        SteerStitch.execute(source, edited, mask, 8)
        assert "thinner than twice the feather" in caplog.text


def test_masks_of_other_sizes():
    """A mask of latents becomes blocks of 8 pixels; of one twice as large every line of one pixel stays."""
    latents = torch.rand(5, 6).round()
    blocks = mask_like(latents, 40, 48)
    assert torch.equal(blocks, latents.repeat_interleave(8, 0).repeat_interleave(8, 1)[None])
    thin = torch.zeros(1, 80, 96)
    thin[:, 33] = thin[:, :, 50] = 1
    shrunk = mask_like(thin, 40, 48)
    assert (shrunk[0, 16] == 1).all() and (shrunk[0, :, 25] == 1).all() and shrunk.sum() == 40 + 48 - 1
    assert mask_like(torch.rand(2, 1, 40, 48), 40, 48).shape == (2, 40, 48)
    # a VAE crops 135x128 to 128x128, and leaves the middle
    wide = torch.rand(1, 128, 135)
    assert torch.equal(mask_like(wide, 128, 128), wide[..., 3:131])


def bad(message, node, source=None, edited=None, mask=None):
    given = [*pictures(), masks()]
    given = [new if new is not None else old for new, old in zip((source, edited, mask), given, strict=True)]
    with pytest.raises(ValueError, match=f"^Steer(Stitch|PoissonBlend): .*{message}"):
        BOTH[node](*given)


@pytest.mark.parametrize("node", BOTH)
def test_what_does_not_fit(node):
    source, edited = pictures()
    bad("source is 48x40 and edited 40x40.*multiples of 8", node, edited=edited[:, :, :40])
    bad("mask is 20x40 and the picture 48x40", node, mask=torch.ones(1, 40, 20))
    bad("2 of source, 1 of edited, 3 of mask", node, source=source.repeat(2, 1, 1, 1), mask=masks(3))
    bad("source holds NaN", node, source=source * float("nan"))
    bad("edited holds NaN", node, edited=edited * float("inf"))
    bad("mask runs from 0 to 255", node, mask=masks() * 255)
    bad("mask runs from nan", node, mask=masks() * float("nan"))
    bad(r"source has shape \(1, 40, 48, 4\).*alpha", node, source=torch.ones(1, 40, 48, 4))


@pytest.mark.parametrize("feather", [-257, 300])
def test_a_feather_out_of_range(feather):
    with pytest.raises(ValueError, match=f"SteerStitch: feather is {feather}"):
        SteerStitch.execute(*pictures(), masks(), feather)


def on_family(family):
    source, _, edited, mask = oracles.background(family)
    out = SteerStitch.execute(source, edited, mask, 0)[0]
    assert torch.equal(out[:, mask[0] == 0], source[:, mask[0] == 0])
    torch.testing.assert_close(out[:, mask[0] == 1], edited[:, mask[0] == 1], rtol=1e-4, atol=1e-4)


ORACLE = {
    "SteerStitch": ("outside the mask the source, inside the edit", on_family),
}
CHECK = {
    "SteerStitch": (checks.stitched, ()),
}
USUAL = {
    "SteerStitch": {"feather": (0, 3, -3)},
}
