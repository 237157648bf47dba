"""The benchmarks' list, and the peer that is not in the repository. What they measure is in their tables."""

import pytest
from steer.bench import lanpaint
from steer.bench.runner import FOLDER, NAMES


def test_every_benchmark_is_listed_and_has_its_table():
    found = {path.stem for path in FOLDER.glob("*.py") if "\ndef run() -> str:\n" in path.read_text()}
    assert found == set(NAMES)
    assert found <= {path.stem for path in FOLDER.glob("*.md")}


def test_lanpaint_is_left_out_when_no_path_is_given(monkeypatch):
    monkeypatch.delenv(lanpaint.VARIABLE, raising=False)
    assert lanpaint.load() is None


def test_a_path_without_lanpaint_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv(lanpaint.VARIABLE, str(tmp_path))
    with pytest.raises(ValueError, match="LANPAINT_PATH is .*give a checkout of LanPaint"):
        lanpaint.load()
