"""What the memory checks ask for, beside what torch then gives out on the GPU."""

from functools import partial

import pytest
import torch
from steer.bench.attention_cost import peak_bytes
from steer.bench.gradient_cost import Square
from steer.bench.large_models import guided_by, judge
from steer.lab.comfy.random_models import random_kl
from steer.lab.comfy.runs import noise_of
from steer.nodes.host import vae as host_vae
from steer.nodes.host.gradients.model import Differentiable
from steer.nodes.reconstruct import SteerReconstructDecoder, SteerReconstructLatent
from steer.tests.gpu.compared import REAL, bench_of

pytestmark = pytest.mark.skipif(not REAL, reason="torch counts what it gives out on a GPU alone")
SIDE = 512


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_gradients_through_the_model(caplog, dtype):
    """Beside what is kept for the way back there is what a call needs, which the host estimates."""
    bench = bench_of(dtype)
    guided = guided_by(bench.guider, Square(), True, 1e-3)
    bench.sample(guided)
    with caplog.at_level("INFO", "steer"):
        held = peak_bytes(lambda: bench.sample(guided))
    said = [record.args[1] * 2**30 for record in caplog.records if "take %.2f GiB" in record.msg][-1]
    call = bench.model.model.memory_required([2, *bench.noise.shape[1:]])
    print(f"\n{dtype}: asked for {said / 2**20:.0f} MiB, held {held / 2**20:.0f}, a call {call / 2**20:.0f}")
    assert said <= 1.2 * held and held <= said + call


def test_decoder_and_clip():
    """The check is of the least with which the way back can be walked, so it asks for no more than is held."""
    bench, loss = bench_of(torch.float16), judge()
    guided = guided_by(bench.guider, loss, False, 1e-3)
    bench.sample(guided)
    held, said = peak_bytes(lambda: bench.sample(guided)), loss.memory(tuple(bench.noise.shape))
    print(f"\nasked for {said / 2**20:.0f} MiB, held {held / 2**20:.0f}")
    assert 0.1 * held < said <= held


@pytest.mark.parametrize("node", [SteerReconstructLatent, SteerReconstructDecoder])
def test_fitting_a_vae(monkeypatch, node):
    """What is asked for is what it takes where activations are computed again."""
    monkeypatch.setattr(host_vae, "Differentiable", partial(Differentiable, recompute=True))
    vae, generator = random_kl(128), torch.Generator().manual_seed(0)
    latent, mask = {"samples": noise_of((1, 4, SIDE // 8, SIDE // 8))}, torch.zeros(1, SIDE, SIDE)
    mask[:, 128:256, 128:256] = 1
    source = torch.rand(1, SIDE, SIDE, 3, generator=generator)

    def fitted():
        node.execute(vae, source, latent, mask, 2, 0.01)

    fitted()
    said = host_vae.memory_needed(vae, latent["samples"].shape, node is SteerReconstructDecoder)
    held = peak_bytes(fitted)
    print(f"\n{node.__name__}: asked for {said / 2**20:.0f} MiB, held {held / 2**20:.0f}")
    assert held <= 1.1 * said and said < 3 * held
