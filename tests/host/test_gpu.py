"""The tests and the benchmark for a GPU, small and on the CPU, from a pack of the real host without wheels."""

import tarfile

import pytest
from steer.lab.gpu import __main__ as command
from steer.lab.gpu import pack, run

pytestmark = pytest.mark.slow


def test_from_the_pack_on_a_cpu(tmp_path, monkeypatch):
    for module in (pack, run):
        monkeypatch.setattr(module, "FOLDER", tmp_path / ".gpu")
    monkeypatch.setattr(pack, "wheels_of", lambda *_: {})
    monkeypatch.setattr(run, "GPU_TESTS", ["tests/gpu/test_attention.py", "tests/gpu/test_memory.py"])
    assert command.main(["pack"]) == 0
    with tarfile.open(pack.FOLDER / pack.HOST) as archive:
        assert not [name for name in archive.getnames() if name.endswith((".safetensors", ".png", ".mp4"))]
    out = tmp_path / "out"
    assert command.main(["run", "tests", "Flux, 1024", "--device", "cpu", "--out", str(out)]) == 0
    text = (out / "gpu.md").read_text()
    assert "no GPU" in text and "FLASH_ATTENTION is off by" in text and "9 passed" in text
    assert "On a CPU" in text and "torch counts what it gives out on a GPU alone" in text
    assert text.count("| Flux, 1024 |") == 10 and "FAILED" not in text and "ERROR" not in text
