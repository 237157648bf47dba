"""Half precision beside float32, for every node of the sampling loop: of the same weights, and finite."""

from math import inf

import comfy.model_management as management
import pytest
import torch
from steer.tests.gpu.compared import HALVES, bench_of, off, rounding, runs_of
from steer.tests.host.test_weights_and_devices import NODES, conds, files, latent, null_text, plain, stored  # noqa: F401

STIFF = {"DDIM Inversion, refine 5, cfg 1", "Trajectory Blend"}
"""In two steps of a random network a refined inversion is a solution of nothing smooth: it is finite, no more."""


@pytest.fixture(scope="module", params=HALVES, ids=["float16", "bfloat16"])
def pair(request):
    """(dtype, the runs in it, the runs in float32 of the same weights)"""
    with torch.inference_mode():
        half, full = bench_of(request.param), bench_of(torch.float32)
        weights = half.model.model.diffusion_model.state_dict()
        for name, weight in full.model.model.diffusion_model.state_dict().items():
            weight.copy_(weights[name])
        return request.param, runs_of(half), runs_of(full)


def test_at_real_size(pair):
    dtype, halves, fulls = pair
    offs = {name: off(halves[name](), fulls[name]()) for name in fulls}
    print(*(f"\n{name}: {dtype} is off by {distance:.1e}" for name, distance in offs.items()))
    most = {name: inf if name in STIFF else rounding(dtype, name) for name in offs}
    assert {name: distance for name, distance in offs.items() if not 0 < distance < most[name]} == {}


@pytest.mark.parametrize("dtype", HALVES, ids=["float16", "bfloat16"])
@pytest.mark.parametrize("node", NODES)
def test_on_trained_weights(shapes, conds, latent, plain, monkeypatch, node, dtype):  # noqa: F811
    monkeypatch.setattr(management, "unet_manual_cast", lambda *args, **kwargs: None)
    model, seen = stored(dtype).clone(), set()
    model.set_model_attn2_output_patch(lambda n, extra_options: (seen.add(n.dtype), n)[1])
    distance = off(node(model, shapes[1], conds, latent), plain(node))
    print(f"\n{node.__name__}: {dtype} is off by {distance:.1e}")
    most = rounding(dtype, "Null-Text" if node is null_text else "") * 2  # a last layer of full size, guidance at 3
    assert seen == {dtype} and 0 < distance < most
