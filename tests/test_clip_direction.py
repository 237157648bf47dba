"""The directional loss: its ends, its middle, where there is no direction."""

import pytest
import torch
from steer.samplers.clip_direction import GUARD, change, check_wanted, direction_distance
from torch.nn.functional import normalize

DOUBLE = torch.float64


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def test_along_against_and_across():
    wanted = randn(1, 16)
    across = randn(1, 16, seed=1)
    across = across - (across * normalize(wanted, dim=-1)).sum() * normalize(wanted, dim=-1)
    for moved, expected in ((1e3 * wanted, 0.0), (-1e3 * wanted, 2.0), (1e3 * across, 1.0)):
        assert float(direction_distance(moved, wanted)) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("length", [0.0, 1e-3, GUARD, 1.0])
def test_short_changes_are_finite_and_point_the_way(length):
    wanted = normalize(randn(1, 16), dim=-1)
    moved = (length * wanted).requires_grad_()
    value = direction_distance(moved, wanted)
    (slope,) = torch.autograd.grad(value.sum(), moved)
    assert value.item() == pytest.approx(1.0 - length / (length**2 + GUARD**2) ** 0.5, abs=1e-9)
    torch.testing.assert_close(slope, -wanted * GUARD**2 / (length**2 + GUARD**2) ** 1.5)


def test_the_wanted_length_does_not_matter_and_the_batch_is_each_alone():
    moved, wanted = 0.1 * randn(3, 4, 16), randn(1, 1, 16, seed=1)
    expected = direction_distance(moved, wanted)
    torch.testing.assert_close(direction_distance(moved, 7.0 * wanted), expected)
    alone = torch.stack([direction_distance(each, wanted[0]) for each in moved])
    torch.testing.assert_close(alone, expected)


def test_a_change_is_between_directions_of_embeddings():
    before, after = randn(2, 16), randn(2, 16, seed=1)
    torch.testing.assert_close(change(3.0 * before, 0.1 * after), change(before, after))
    assert torch.equal(change(before, before), torch.zeros_like(before))


def test_no_change_is_refused():
    check_wanted(torch.tensor([[0.0, 0.01]]))
    with pytest.raises(ValueError, match="source_text and target_text are one to CLIP"):
        check_wanted(torch.tensor([[0.0, 1e-7]]))
