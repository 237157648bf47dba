"""The benchmark on models of real size runs, on a small one, and finds equal what has to be."""

import subprocess

import torch
from steer.bench import large_models
from steer.bench.large_models import CHOSEN, KINDS, Kind, in_modes, measured, one_mode

UNET = {**KINDS["SD1.5"].unet, "model_channels": 32, "context_dim": 64, "num_head_channels": 16}
SMALL = Kind(KINDS["SD1.5"].config, UNET, torch.float32, 64, 64)


def test_what_has_to_be_equal(monkeypatch):
    monkeypatch.setattr(large_models, "judge", lambda: large_models.Square())
    rows = {row[""]: row for row in measured(SMALL, 128, steps=4, turns=1)}
    assert len(rows) == 19 and all(row["rows"] != "0.00" for row in rows.values())
    for name, row in rows.items():
        told = row["equal"]
        assert "but for" not in told or float(told.split()[-1]) < 1e-4, f"{name}: {told}"


def test_a_mode_gives_the_same_and_says_what_it_took(monkeypatch, capsys):
    def run(command, **_):
        one_mode(command[2].split("'")[1], None, SMALL, 128, 2)
        return subprocess.CompletedProcess(command, 0, capsys.readouterr().out, "")

    monkeypatch.setattr(large_models, "MODES", {"one": ("", None)})
    monkeypatch.setattr(large_models.subprocess, "run", run)
    table = in_modes()
    assert table.count("0e+00") == len(CHOSEN) and all(name in table for name in CHOSEN)
