"""Pack the host and the wheels that are missing on a machine with a GPU into one folder."""

import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from ..comfy.find import find_host
from ..package import ROOT

FOLDER = ROOT / ".gpu"
HOST = "host.tar.xz"
LIMIT = 60 * 2**20
TESTS = "pytest", "hypothesis"
THERE = {"torch", "torchvision", "torchaudio", "triton", "numpy", "scipy", "pillow"}
"""What a machine with a GPU has with its torch."""
NOT_NEEDED = {"comfyui-frontend-package", "comfyui-workflow-templates", "comfyui-embedded-docs", "comfy-angle",
              "pyopengl", "av", "kornia", "hf-xet", "alembic", "sqlalchemy"}  # fmt: skip
"""The editor's, the server's, or of nodes that nothing here runs. For `av` there is a stub: the host imports it."""
WITHOUT_KERNELS = {"comfy-kitchen"}  # 56 MB with them; they are of quantised models
LEFT_OUT = re.compile(
    r"\.|(models|input|output|user|temp|web|tests|tests-unit|blueprints|custom_nodes|script_examples|comfy_api_nodes)/"
    r"|comfy/text_encoders/\w*tokenizer\w*/"
)
SUFFIXES = {".py", ".json", ".txt", ".yaml", ".ini", ".toml", ".model", ".mako"}


def main(python: str, platform: str, have: Path | None) -> int:
    """Make the folder anew. ValueError when there is no host, when a wheel cannot be had, and when it is too large."""
    host = find_host()
    if host is None:
        raise ValueError("no ComfyUI to pack: set COMFYUI_PATH to a checkout, or clone it to ~/comfy/ComfyUI")
    shutil.rmtree(FOLDER, ignore_errors=True)
    (FOLDER / "wheels").mkdir(parents=True)
    download(wheels_of(host, python, names_in(have) if have else set()), python, platform)
    pack_host(host, FOLDER / HOST)
    check_size()
    return 0


def wheels_of(host: Path, python: str, have: set[str]) -> dict[str, str]:
    """The version of each distribution that the host and the tests need there, as they are installed here."""
    from packaging.requirements import Requirement  # which a machine that runs the pack may not have
    from packaging.utils import canonicalize_name

    lines = [line for line in (host / "requirements.txt").read_text().splitlines() if line.strip() and line[0] != "#"]
    versions, left_out = {}, THERE | NOT_NEEDED | have
    target = {"python_version": python, "python_full_version": f"{python}.0", "extra": ""}

    def add(lines: list[str]) -> None:
        for requirement in map(Requirement, lines):
            name = canonicalize_name(requirement.name)
            wanted = requirement.marker is None or requirement.marker.evaluate(target)
            if wanted and name not in left_out | versions.keys():
                try:
                    found = distribution(name)
                except PackageNotFoundError:
                    raise ValueError(f"{name} is not installed here: `make env` installs it") from None
                versions[name] = found.version
                add(found.requires or [])

    add([*lines, *TESTS])
    return versions


def names_in(freeze: Path) -> set[str]:
    """The names in what `pip freeze` or `pip list --format freeze` wrote."""
    from packaging.utils import canonicalize_name

    lines = (line.replace(" @ ", "==").split("==")[0].strip() for line in freeze.read_text().splitlines())
    return {canonicalize_name(line) for line in lines if line and not line.startswith(("#", "-"))}


def download(versions: dict[str, str], python: str, platform: str) -> None:
    """The wheels, by pip. ValueError when one cannot be had."""
    plain = [f"{name}=={version}" for name, version in versions.items() if name not in WITHOUT_KERNELS]
    pure = [f"{name}=={version}" for name, version in versions.items() if name in WITHOUT_KERNELS]
    for wanted, platforms in ((plain, tags(platform)), (pure, ["any"])):
        if wanted:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
                       "--only-binary=:all:", "--implementation", "cp", "--python-version", python,
                       *(part for each in platforms for part in ("--platform", each)),
                       "--dest", str(FOLDER / "wheels"), *wanted]  # fmt: skip
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise ValueError(f"pip has no wheel: {done.stderr.strip().splitlines()[-1]}")


def tags(platform: str) -> list[str]:
    """The platform with the older ones whose wheels run there too: pip takes each by its very name."""
    start, *rest = platform.split("_", 3)
    if start != "manylinux":
        return [platform]
    major, minor, machine = rest
    newer = [f"manylinux_{major}_{number}_{machine}" for number in range(int(minor), 4, -1)]
    return [*newer, *(f"manylinux{year}_{machine}" for year in ("2014", "2010", "1"))]


def pack_host(host: Path, target: Path) -> None:
    """The host's code, and the data it reads as it starts."""
    with tarfile.open(target, "w:xz") as archive:
        for path in host_files(host):
            archive.add(path, path.relative_to(host).as_posix())


def host_files(host: Path) -> Iterator[Path]:
    """Code and data, but what is only for the editor, for API nodes or for text encoders that nothing here loads."""
    for path in sorted(host.rglob("*")):
        if path.suffix in SUFFIXES and path.is_file() and not LEFT_OUT.match(path.relative_to(host).as_posix()):
            yield path


def check_size() -> None:
    """Says how large the folder is; ValueError when it is too large."""
    sizes = {path.name: path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()}
    largest = sorted(sizes, key=sizes.get, reverse=True)[:3]
    told = ", ".join(f"{name} {sizes[name] / 2**20:.1f} MiB" for name in largest)
    total = sum(sizes.values())
    if total > LIMIT:
        raise ValueError(
            f"{FOLDER} takes {total / 2**20:.1f} MiB, more than {LIMIT / 2**20:.0f}; the largest: {told}. Name what "
            "the machine has (--have)."
        )
    print(f"{FOLDER}: {total / 2**20:.1f} MiB in {len(sizes)} files; the largest: {told}")
