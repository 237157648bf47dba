"""The state of a training on disk: who goes on from it goes on as if nothing had stopped."""

import pytest
import torch
from steer.lab.models.training import Batches, Training
from torch import nn


def training(seed):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    optimizers = [
        torch.optim.Muon([net[0].weight], lr=0.1),
        torch.optim.AdamW([net[0].bias, *net[1].parameters()], lr=0.01),
    ]
    return Training(net, optimizers)


def steps(running, first, last):
    for step in range(first, last):
        x = torch.randn(5, 3, generator=torch.Generator().manual_seed(step))
        running.update(running.net(x).square().sum(), 1 / (1 + step))


def test_a_training_goes_on_where_it_was_saved(tmp_path):
    whole, stopped, resumed = training(0), training(0), training(1)
    steps(whole, 0, 6)
    steps(stopped, 0, 3)
    stopped.save(tmp_path / "state.safetensors")
    resumed.load(tmp_path / "state.safetensors")
    assert (resumed.step, resumed.seconds) == (3, 0.0)
    steps(resumed, 3, 6)
    for key, value in whole.net.state_dict().items():
        assert torch.equal(resumed.net.state_dict()[key], value), key
        assert torch.equal(resumed.ema[key], whole.ema[key]), key


def test_the_running_mean_starts_fast():
    running = training(0)
    before = running.ema["1.bias"].clone()
    steps(running, 0, 1)
    after = running.net[1].bias.detach()
    torch.testing.assert_close(running.ema["1.bias"], before + (1 - 2 / 11) * (after - before))


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_batch_has_its_share_of_two_object_scenes(share):
    ids = torch.zeros(8, 20, dtype=torch.long)
    ids[:4, :10], ids[4:, :16] = 5, 5  # four captions of one object, four of two
    data = {"latents": torch.arange(8.0), "ids": ids, "empty": torch.zeros(20, dtype=torch.long)}
    latents, rows = Batches(data, 16, share, dropout=0.0).draw()
    assert torch.equal(latents >= 4, torch.full((16,), bool(share)))
    assert torch.equal(rows, ids[latents.long()])


def test_a_vocabulary_of_longer_captions_says_how_long_those_of_one_object_are():
    ids = torch.zeros(8, 24, dtype=torch.long)
    ids[:4, :12], ids[4:, :19] = 5, 5
    data = {"latents": torch.arange(8).half(), "ids": ids, "empty": torch.zeros(24, dtype=torch.long)}
    latents, _ = Batches(data, 16, 0.0, dropout=0.0, one=12).draw()
    assert (latents < 4).all() and latents.dtype == torch.float32


def test_dropped_captions_are_empty():
    ids = torch.full((2, 20), 5)
    ids[1, 10:] = 0
    data = {"latents": torch.zeros(2), "ids": ids, "empty": torch.zeros(20, dtype=torch.long)}
    assert not Batches(data, 4, 0.5, dropout=1.0).draw()[1].any()
