"""PyTorch's attention kernels, one at a time, under the edits: all give one picture."""

import comfy.ops
import pytest
import torch
from steer.bench.large_models import HOST, P2P
from steer.tests.gpu.compared import REAL, bench_of, off, rounding, runs_of
from torch.nn.attention import SDPBackend, sdpa_kernel

DTYPE = torch.float16 if REAL else torch.float32
KERNELS = SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION
EDITS = (HOST, f"{P2P}: replace, blend", f"{P2P}: refine, windows", "Capture Attention",
         "Capture Attention, heatmaps alone", "Inject Attention", "Paint with Words",
         "Gradient Guider: a loss of no cost", "Null-Text, 2 inner steps")  # fmt: skip


class Attention:
    """Stands in for the host's `scaled_dot_product_attention`, by one kernel alone."""

    kernel, calls = SDPBackend.MATH, 0

    def __call__(self, *args, **kwargs):
        self.calls += 1
        with sdpa_kernel(self.kernel):
            return torch.nn.functional.scaled_dot_product_attention(*args, **kwargs)


@pytest.fixture(scope="module")
def attention():
    with pytest.MonkeyPatch.context() as patch:
        attention = Attention()
        patch.setattr(comfy.ops, "scaled_dot_product_attention", attention)
        yield attention


@pytest.fixture(scope="module")
def runs(attention):
    with torch.inference_mode():
        return runs_of(bench_of(DTYPE, attention=True))


@pytest.fixture(scope="module")
def expected(attention, runs):
    """What the plain formula gives, by name."""
    attention.kernel = SDPBackend.MATH
    with torch.inference_mode():
        return {name: runs[name]() for name in EDITS}


@pytest.mark.parametrize("name", EDITS)
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_one_picture(attention, runs, expected, name, kernel):
    attention.kernel, attention.calls = kernel, 0
    try:
        out = runs[name]()
    except RuntimeError as error:
        if not str(error).startswith(("No available kernel", "No viable backend")):
            raise
        pytest.skip(f"{kernel.name} takes not all that {name} gives it: {str(error).splitlines()[0]}")
    finally:
        attention.kernel = SDPBackend.MATH
    assert attention.calls
    distance = off(out, expected[name])
    print(f"\n{name}: {kernel.name} is off by {distance:.1e}")
    assert distance < 2 * rounding(DTYPE, name)  # each of the two is rounded
