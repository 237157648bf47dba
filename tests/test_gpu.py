"""What is packed for a machine with a GPU, and what is done there."""

import subprocess
import sys
import tarfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from packaging.utils import canonicalize_name
from steer.lab.gpu import __main__ as command
from steer.lab.gpu import pack, run

KEPT = {"main.py": "print()", "comfy/model.py": "", "comfy/vocabulary.json": "{}", "requirements.txt": "# of the host\n"
        "torch\n\ntqdm>=4.0\npytest; python_version < '3.0'\ncomfyui-frontend-package==1\n"}  # fmt: skip
LEFT_OUT = (
    "models/large.json",
    ".git/config.py",
    "web/page.json",
    "comfy/picture.png",
    "input/a.txt",
    "logo.png",
    "comfy/text_encoders/t5_tokenizer/tokenizer.json",
)


@pytest.fixture
def host(tmp_path, monkeypatch):
    """A folder like ComfyUI's, which is found, and a folder for the pack."""
    for name in [*KEPT, *LEFT_OUT]:
        (tmp_path / "host" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "host" / name).write_text(KEPT.get(name, "left out"))
    for module in (pack, run):
        monkeypatch.setattr(module, "FOLDER", tmp_path / ".gpu")
    monkeypatch.setattr(pack, "find_host", lambda: tmp_path / "host")
    return tmp_path / "host"


@pytest.fixture
def pip(monkeypatch):
    """Stands in for pip: writes an empty wheel for each name, and notes the commands."""
    commands = []

    def download(arguments, **_):
        commands.append(arguments)
        folder = Path(arguments[arguments.index("--dest") + 1])
        for wanted in (part for part in arguments if "==" in part):
            (folder / f"{wanted}.whl").write_bytes(b"\0" * 1000)
        return subprocess.CompletedProcess(arguments, 0, "", "")

    monkeypatch.setattr(pack.subprocess, "run", download)
    return commands


class TestPack:
    def test_the_hosts_code_and_the_wheels_that_it_needs(self, host, pip, tmp_path):
        (tmp_path / "freeze.txt").write_text("# there\nhypothesis==1.0\nIniConfig @ file:///x\n-e .\n")
        assert command.main(["pack", "--have", str(tmp_path / "freeze.txt")]) == 0
        with tarfile.open(pack.FOLDER / "host.tar.xz") as archive:
            assert set(archive.getnames()) == set(KEPT)
        names = {canonicalize_name(path.name.split("==")[0]) for path in (pack.FOLDER / "wheels").iterdir()}
        assert {"tqdm", "pytest", "pluggy"} <= names  # what pytest needs, too
        assert not names & {"torch", "comfyui-frontend-package", "hypothesis", "iniconfig", "sortedcontainers"}

    def test_of_another_python_and_platform(self, host, pip, monkeypatch):
        monkeypatch.setattr(pack, "WITHOUT_KERNELS", {"tqdm"})
        command.main(["pack", "--python", "3.13", "--platform", "manylinux_2_17_aarch64"])
        plain, pure = (" ".join(arguments) for arguments in pip)
        assert "--python-version 3.13" in plain and "--no-deps --only-binary=:all:" in plain
        assert "--platform manylinux_2_17_aarch64 --platform manylinux_2_16_aarch64" in plain
        assert "manylinux2014_aarch64" in plain and "manylinux_2_18" not in plain and "tqdm" not in plain
        assert "--platform any" in pure and "tqdm==" in pure and "manylinux" not in pure

    def test_a_requirement_of_another_python_is_left_out(self, host):
        (host / "requirements.txt").write_text("tqdm; python_version >= '3.13'")
        assert "tqdm" in pack.wheels_of(host, "3.13", set()) and "tqdm" not in pack.wheels_of(host, "3.12", set())

    def test_what_is_not_installed_is_said(self, host):
        (host / "requirements.txt").write_text("no-such-thing>=1")
        with pytest.raises(ValueError, match="no-such-thing is not installed here"):
            pack.wheels_of(host, "3.12", set())

    def test_too_large_names_the_largest(self, host, pip, monkeypatch, capsys):
        monkeypatch.setattr(pack, "LIMIT", 2000)
        monkeypatch.setattr(pack, "pack_host", lambda host, target: target.write_bytes(b"\0" * 3000))
        assert command.main(["pack"]) == 2
        assert "MiB, more than 0; the largest: host.tar.xz 0.0 MiB, " in capsys.readouterr().err

    def test_a_wheel_that_cannot_be_had_is_said(self, host, monkeypatch, capsys):
        failed = SimpleNamespace(returncode=1, stderr="looking\nERROR: No matching distribution found for tqdm==4")
        monkeypatch.setattr(pack.subprocess, "run", lambda *_, **__: failed)
        assert command.main(["pack"]) == 2
        assert "No matching distribution found for tqdm" in capsys.readouterr().err

    def test_no_host(self, monkeypatch, capsys):
        monkeypatch.setattr(pack, "find_host", lambda: None)
        assert command.main(["pack"]) == 2 and "no ComfyUI to pack" in capsys.readouterr().err


class TestRun:
    def test_without_a_gpu_it_says_so(self, monkeypatch, tmp_path, capsys):
        monkeypatch.setattr(run, "gpu_there", lambda torch: False)
        assert command.main(["run", "--out", str(tmp_path / "out")]) == 0
        assert "no GPU" in capsys.readouterr().out and not (tmp_path / "out").exists()

    def test_an_unknown_part(self, capsys):
        assert command.main(["run", "SD3", "--device", "cpu"]) == 2
        assert "no such part: ['SD3']; there are tests, Flux" in capsys.readouterr().err

    def test_the_pack_is_used(self, host, pip, monkeypatch):
        command.main(["pack"])
        for wheel in (pack.FOLDER / "wheels").iterdir():
            wheel.unlink()  # they are none
        monkeypatch.setattr(run, "find_spec", lambda name: None)
        used = run.unpacked()
        assert Path(used["COMFYUI_PATH"], "comfy", "model.py").is_file()
        code = "import av; from av.subtitles.stream import SubtitleStream; av.VideoStream.any.of, SubtitleStream"
        subprocess.check_call([sys.executable, "-S", "-c", code], env=used)

    def test_what_takes_too_long_is_stopped_with_what_it_started(self, tmp_path, monkeypatch):
        class TooLong(subprocess.Popen):
            def wait(self, seconds=None):
                if seconds is None:
                    return super().wait()
                while not (tmp_path / "log.txt").stat().st_size:
                    time.sleep(0.01)
                raise subprocess.TimeoutExpired(self.args, seconds)

        monkeypatch.setattr(run.subprocess, "Popen", TooLong)
        told, ended = run.Run(tmp_path, time.monotonic() + 100)(["sh", "-c", "sleep 600 & echo $!; wait"], "log")
        assert ended.startswith("stopped after")
        status, until = Path("/proc", told.strip(), "status"), time.monotonic() + 60
        while status.exists() and "Z (zombie)" not in status.read_text() and time.monotonic() < until:
            time.sleep(0.01)  # a killed process may be there for a moment
        assert not status.exists() or "Z (zombie)" in status.read_text()

    def test_what_failed_and_what_was_measured_is_in_the_summary(self):
        told = "x is off by 1e-3\nnoise\nSKIPPED [1] a.py:3: why\n=== 1 failed, 2 passed in 3.00s ==="
        assert run.summary(told, "exit code 1").splitlines() == [
            "- x is off by 1e-3", "- SKIPPED [1] a.py:3: why", "- 1 failed, 2 passed in 3.00s", "- exit code 1",
        ]  # fmt: skip
