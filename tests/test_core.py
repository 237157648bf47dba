import math

import pytest
import torch
from steer.samplers.core import SampleNoise, descending


def test_descending_gives_floats():
    assert descending(torch.tensor([2.0, 1.0, 0.0])) == [2.0, 1.0, 0.0]


@pytest.mark.parametrize(
    "sigmas, word",
    [
        ([], "at least two"),
        ([1.0], "at least two"),
        ([1.0, 2.0, 0.0], "descending"),
        ([1.0, math.nan], "finite"),
        ([math.inf, 1.0], "finite"),
        ([1.0, -0.5], "negative"),
        ([1.0, 0.0, 0.0], "only the last"),
    ],
)
def test_bad_sigmas_are_refused(sigmas, word):
    with pytest.raises(ValueError, match=word):
        descending(sigmas)


def starts(batch):
    return torch.randn(batch, 4, 3, 5, generator=torch.Generator().manual_seed(3))


def test_a_batch_draws_what_its_samples_draw_alone():
    noise, latent = starts(3), torch.zeros(3, 4, 3, 5)
    together = SampleNoise(7, "step", noise, latent)
    alone = [SampleNoise(7, "step", noise[i : i + 1], latent[i : i + 1]) for i in range(3)]
    for _ in range(3):
        expected = torch.cat([one(noise[:1]) for one in alone])
        assert torch.equal(together(noise), expected)


def test_samples_streams_and_seeds_differ():
    noise = starts(2)
    a = SampleNoise(7, "step", noise)(noise)
    assert not torch.equal(a[0], a[1])
    assert not torch.equal(a, SampleNoise(7, "known", noise)(noise))
    assert not torch.equal(a, SampleNoise(8, "step", noise)(noise))
    assert torch.equal(a, SampleNoise(7, "step", noise)(noise))


def test_samples_that_start_alike_still_differ():
    same = torch.zeros(3, 4, 4)
    drawn = SampleNoise(0, "step", same)(same)
    assert not torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[1], drawn[2])


def test_noise_is_standard_normal_and_unlike_the_start():
    noise = torch.randn(2, 100_000)
    drawn = SampleNoise(0, "step", noise)(noise)
    assert abs(drawn.mean()) < 0.01 and abs(drawn.std() - 1) < 0.01
    assert torch.corrcoef(torch.stack([drawn[0], noise[0]]))[0, 1].abs() < 0.02
