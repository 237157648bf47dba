"""Weights that stay off the GPU, in hosts that are started so: the same results, and less of the GPU's memory."""

import json

import pytest
from safetensors.torch import load_file
from steer.bench.large_models import CHOSEN, HOST, in_mode
from steer.tests.gpu.compared import HALVES, REAL, off, rounding

FLAGS = ("--novram", "--disable-dynamic-vram --lowvram") if REAL else ("--disable-smart-memory",)


def started(flags, folder):
    """What a host of these flags makes, and what it took, by name."""
    done = in_mode(flags, None, folder / "results.safetensors", name="SD1.5")
    assert done.returncode == 0, done.stderr[-2000:]
    return load_file(folder / "results.safetensors"), json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    return started("", tmp_path_factory.mktemp("usual"))


@pytest.mark.parametrize("flags", FLAGS)
def test_what_is_off_the_gpu_changes_nothing(usual, tmp_path, flags):
    (expected, taken), (results, spent) = usual, started(flags, tmp_path)
    offs = {name: off(results[name], expected[name]) for name in CHOSEN}
    print(*(f"\n{flags}: {name} is off by {d:.1e}, {spent[name]}" for name, d in offs.items()))
    assert {name for name, distance in offs.items() if distance > rounding(HALVES[0], name)} == set()
    if flags == "--novram":
        assert spent[HOST][1] < taken[HOST][1]
