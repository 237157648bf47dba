"""The benchmark on models of real size runs, on small ones, and finds equal what has to be."""

import subprocess
import time

import pytest
from steer.bench import large_models
from steer.bench.large_models import CHOSEN, SMALL, Measured, in_modes, one_mode, reports
from steer.tests.host_models import ON_GPU

KNOWN = "comes back", "of the same prompt 0 pixels", "maps off 1"


@pytest.mark.parametrize(
    "name, ways, steps",
    [*(pytest.param(*each, marks=pytest.mark.slow) for each in (("SD1.5", 17, 4), ("SDXL", 17, 2))), ("Flux", 10, 2)],
)
def test_what_has_to_be_equal(name, ways, steps):
    measured = Measured(SMALL[name], 128, steps, turns=1)
    rows = [measured.row(way) for way in measured.ways]
    assert len(rows) == ways and all(row["rows"] != "0.00" for row in rows)
    for row in rows:
        told = row["equal"]
        assert not told or "bit for bit" in told or told.startswith(KNOWN) or float(told.split()[-1]) < 1e-4, row


@pytest.mark.skipif(ON_GPU, reason="it would measure the large models")
def test_what_there_is_no_time_for_is_named(monkeypatch):
    monkeypatch.setattr(large_models, "TURNS", 1)
    monkeypatch.setattr(large_models.Measured, "row", lambda measured, name: out_of_memory() if "RePaint" in name else
                        {"": name, **dict.fromkeys(large_models.COLUMNS, "1")})  # fmt: skip
    *parts, whole = reports(["Flux, 1024"])
    assert "the host alone" in whole and "FAILED: no memory" in whole and "Not measured" not in whole
    assert all("Not measured: what follows of Flux, 1024" in part for part in parts)
    assert list(reports(["modes"], time.monotonic() - 1))[-1].endswith("Not measured: modes.\n")


def out_of_memory():
    raise RuntimeError("no memory\nat all")


@pytest.mark.skipif(ON_GPU, reason="it would measure the large models")
def test_a_mode_gives_the_same_and_says_what_it_took(monkeypatch, capsys):
    def run(command, **_):
        one_mode(command[2].split("one_mode('")[1].split("'")[0], None, steps=2)
        return subprocess.CompletedProcess(command, 0, capsys.readouterr().out, "")

    monkeypatch.setattr(large_models, "TRIED_MODES", {"one": ("", None)})
    monkeypatch.setattr(large_models.subprocess, "run", run)
    table = in_modes()
    assert table.count("0e+00") == len(CHOSEN) and all(name in table for name in CHOSEN)
