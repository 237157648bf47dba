"""Run the gpu tier and the benchmark from that folder (without it in this environment) and write gpu.md."""

import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from ..comfy.find import VARIABLE, find_host, gpu_there, in_host
from ..package import ROOT
from .pack import FOLDER, HOST

TESTS, GPU_TESTS = "tests", ["tests/gpu"]
PARTS = (TESTS, "Flux, 1024", "SDXL, 1024", "modes", "SD1.5, 512", "SD1.5, 1024")
"""The tests, and those of the benchmark (`PARTS` of bench/large_models.py)."""
SHARE = 0.5  # of the time, which the tests may take where there is more to do
ASIDE = 10.0  # seconds kept for a part that has to be ended
STUB = """class Anything(type):
    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Anything(name, (), {})


def __getattr__(name):
    return getattr(Anything("module", (), {}), name)
"""
STUBS = ("av/__init__.py", "av/container.py", "av/subtitles/__init__.py", "av/subtitles/stream.py",
         "av/video/__init__.py", "av/video/reformatter.py")  # fmt: skip
"""The host imports `av`, which is large, for videos alone."""


@dataclass
class Run:
    """Where it runs, until when, and where its results go."""

    out: Path
    until: float
    environment: dict[str, str] = field(default_factory=lambda: {**os.environ, "PYTHONUNBUFFERED": "1"})

    def __call__(self, command: Sequence[str], name: str, share: float = 1.0) -> tuple[str, str]:
        """(what the command printed, which is also in the file of that name; how it ended if not well)"""
        seconds = max(1.0, share * (self.until - time.monotonic()))
        log = self.out / f"{name}.txt"
        with log.open("w") as file:
            given = {"cwd": ROOT, "env": self.environment, "stdout": file, "stderr": subprocess.STDOUT}
            process = subprocess.Popen(command, start_new_session=True, **given)
            try:
                code = process.wait(seconds)
                ended = f"exit code {code}" if code else ""
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)  # and what it started
                process.wait()
                ended = f"stopped after {seconds:.0f} s"
        return log.read_text(errors="replace"), ended


def main(parts: list[str], device: str, out: Path, seconds: float) -> int:
    """Run the parts. 0 also where there is no GPU and the CPU was not asked for, which it says."""
    started = time.monotonic()
    if unknown := set(parts) - set(PARTS):
        raise ValueError(f"no such part: {sorted(unknown)}; there are {', '.join(PARTS)}")
    import torch

    if device != "cpu" and not gpu_there(torch):
        print("torch sees no GPU here, so nothing is run. --device cpu runs the same on small models.")
        return 0
    run = Run(out.resolve(), started + seconds)
    if (FOLDER / HOST).is_file():
        run.environment |= unpacked()
    elif find_host() is None:
        raise ValueError("no ComfyUI here and no pack of it: `python -m lab.gpu pack` makes one elsewhere")
    run.out.mkdir(parents=True, exist_ok=True)
    if device == "cpu":
        run.environment |= {"STEER_DEVICE": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    host = Path(run.environment.get(VARIABLE) or find_host())
    report(run, parts or list(PARTS), f"{machine(torch, device)}, ComfyUI {version(host)}")
    return 0


def unpacked() -> dict[str, str]:
    """Unpacks the folder; the variables by which it is used. CalledProcessError when pip takes not all wheels."""
    host, site = FOLDER / "host", FOLDER / "site"
    for folder in (host, site):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
    with tarfile.open(FOLDER / HOST) as archive:
        archive.extractall(host, filter="data")
    if wheels := sorted(map(str, (FOLDER / "wheels").glob("*.whl"))):
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
        subprocess.run([*pip, "--disable-pip-version-check", "--target", str(site), *wheels], check=True)
    if find_spec("av") is None:
        for name in STUBS:
            (site / name).parent.mkdir(parents=True, exist_ok=True)
            (site / name).write_text(STUB)
    return {
        VARIABLE: str(host),
        "PYTHONPATH": os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }


def machine(torch, device: str) -> str:
    card = torch.cuda.get_device_name() if device != "cpu" and torch.cuda.is_available() else f"no GPU ({device})"
    return f"{card}, torch {torch.__version__}, Python {platform.python_version()}"


def version(host: Path) -> str:
    return re.search(r'"(.+)"', (host / "comfyui_version.py").read_text())[1]


def report(run: Run, parts: list[str], machine: str) -> None:
    """Writes gpu.md, again after each part."""
    target, text = run.out / "gpu.md", f"# On a GPU\n\n{machine}.\n"
    benchmark = [part for part in PARTS if part in parts and part != TESTS]
    if TESTS in parts:
        told, ended = run([sys.executable, "-m", "pytest", "-vsrsfE", *GPU_TESTS], TESTS, SHARE if benchmark else 1.0)
        text += f"\n## Tests\n\n{summary(told, ended)}\n"
        target.write_text(text)
    if benchmark:
        table, left = run.out / "large_models.md", run.until - time.monotonic() - ASIDE
        table.unlink(missing_ok=True)
        write = f"from steer.bench.large_models import write; write({str(table)!r}, {left}, {benchmark})"
        told, ended = run(in_host(write), "benchmark")
        made = (
            table.read_text().replace("# The nodes", "## The nodes", 1) if table.exists() else "Nothing was measured."
        )
        last = "".join(f"    {line}\n" for line in told.splitlines()[-8:])
        text += f"\n{made}" + (f"\n{ended}; the last it said:\n\n{last}" if ended else "")
        target.write_text(text)
    print(f"{text}\n{target}")


def summary(told: str, ended: str) -> str:
    """What was measured, what failed or was skipped and why, and how many tests passed."""
    lines, chosen = told.splitlines(), ("SKIPPED [", "FAILED tests", "ERROR tests")
    measured = [line for line in lines if " is off by " in line or "asked for " in line]
    failed = [line for line in lines if line.startswith(chosen)]
    counts = [line.strip("= ") for line in lines[-1:] if " in " in line]
    return "\n".join(f"- {line}" for line in [*measured, *failed, *counts, *filter(None, [ended])])
