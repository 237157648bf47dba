"""A method is six files and a line in STEMS: `toy_method/` in a copy of this checkout, after `make docs`, is whole."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from steer.lab.comfy.find import VARIABLE, find_host
from steer.lab.package import ROOT

TOY = ROOT / "tests" / "toy_method"
LEFT_OUT = ".*", "__pycache__", "output", "scratch", "weights", "toy_method"
WRITTEN = {"tests/host/contract.json", "docs/methods.md", "locales/en/nodeDefs.json"}
SEEN_TO = "tests/host/test_docs.py", "tests/host/test_contract.py"
FOR_ALL = "tests/host/test_families.py", "tests/host/test_fuzz.py", "tests/host/test_workflows.py"


def files(folder: Path) -> dict[str, bytes]:
    """All of them by their path, but for what Python leaves behind."""
    paths = (path for path in folder.rglob("*") if path.is_file() and not {"__pycache__"} & {*path.parts})
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


@pytest.fixture
def checkout(tmp_path):
    """This one again, without what is not needed; the weights are the same files."""
    copy = tmp_path / "steer"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*LEFT_OUT))
    (copy / "lab" / "weights").symlink_to(ROOT / "lab" / "weights")
    return copy


def python(checkout: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
    """As a contributor types it there, with the host that this process has."""
    environment = {**os.environ, VARIABLE: str(find_host()), "PYTHONDONTWRITEBYTECODE": "1", **variables}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False)


def pytest_there(checkout: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
    return python(checkout, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", *arguments, **variables)


def passed(done: subprocess.CompletedProcess) -> None:
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


@pytest.mark.slow
def test_nothing_but_its_six_files_is_touched_by_hand(checkout):
    shutil.copytree(TOY, checkout, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    stems = checkout / "nodes" / "__init__.py"
    stems.write_text(stems.read_text().replace('    "ddim",\n', '    "ddim",\n    "toy",\n'))
    by_hand = files(checkout)
    assert len(files(TOY)) == 6
    done = pytest_there(checkout, *SEEN_TO)
    assert done.returncode == 1 and "run `make docs`" in done.stdout
    passed(python(checkout, "-m", "lab.docs", "contract", "help", "locales", "methods"))
    after = files(checkout)
    changed = {path for path in after if after[path] != by_hand.get(path)}
    assert changed == WRITTEN | {"web/docs/SteerToySampler.md"}
    assert "- `pull` (0; 0 to 1) – How far estimates" in (checkout / "web/docs/SteerToySampler.md").read_text()
    passed(pytest_there(checkout, *SEEN_TO, "tests/test_toy.py", "tests/host/test_toy.py", "tests/test_structure.py"))
    as_make_docs = {"STEER_WRITE": "1", "STEER_FUZZ": "0.1"}
    passed(pytest_there(checkout, *FOR_ALL, "-k", "Toy or toy or oracle or left_out", **as_make_docs))
