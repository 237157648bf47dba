"""Test tiers by folder: pure (here), `host/`, `browser/`, `gpu/`; what cannot run is counted and said loudly.

A folder whose needs are missing is not imported (its modules import the host): its test functions are read from
the source and reported as skipped, one each, so that the numbers are pytest's own.
"""

import ast
import gc
import os
import shutil
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
SLOW = TESTS / "slow.txt"  # written by `python -m lab.cpu_report --slow`
sys.path.insert(0, str(TESTS.parent))

from lab.package import load_steer  # noqa: E402  the checkout is on the path only for this import

load_steer()
pytest.register_assert_rewrite("steer.tests.checks", "steer.tests.oracles")

from steer.lab.comfy.find import VARIABLE, find_host, gpu_there  # noqa: E402  importable only now

collect_ignore = ["toy_method"]
REMEDY = "set COMFYUI_PATH to a ComfyUI checkout, or clone it to ~/comfy/ComfyUI"
TIERS = ("host", "browser", "gpu")


def tier_of(path: Path) -> str | None:
    """The tier a test file belongs to; None is the pure tier."""
    folder = path.resolve().relative_to(TESTS).parts[0]
    return folder if folder in TIERS else None


@cache
def missing(tier: str) -> str | None:
    """Why this tier cannot run here, and what would help; None when it can."""
    if find_host() is None:
        return f"{'COMFYUI_PATH is empty' if VARIABLE in os.environ else 'no ComfyUI found'}: {REMEDY}"
    if tier == "browser":
        return _missing_browser()
    if tier == "gpu" and os.environ.get("STEER_DEVICE") != "cpu":
        import torch

        return None if gpu_there(torch) else "torch sees no GPU (STEER_DEVICE=cpu runs them on the CPU, small)"
    return None


def _missing_browser() -> str | None:
    if find_spec("playwright") is None:
        return "playwright is not installed: pip install playwright"
    return None if shutil.which("chromium") else "no chromium found: apt-get install chromium"


class SkippedModule(pytest.File):
    """A test file that is read and not imported: each of its test functions is skipped."""

    def collect(self):
        for node in ast.walk(ast.parse(self.path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                yield SkippedTest.from_parent(self, name=node.name)


class SkippedTest(pytest.Item):
    """A test function that cannot run here."""

    def runtest(self):
        pytest.skip(missing(tier_of(self.path)))

    def reportinfo(self):
        return self.path, None, self.name


@pytest.fixture(scope="session")
def server():
    """One running ComfyUI, with this checkout and the workflows' input pictures, for all tests that want it."""
    from steer.lab.comfy.server import Server
    from steer.lab.world.inputs import write_inputs

    with Server() as running:
        write_inputs(running.input_folder)
        yield running


def pytest_pycollect_makemodule(module_path, parent):
    """Read, and do not import, the files of a tier that cannot run."""
    tier = tier_of(module_path)
    if tier and missing(tier):
        return SkippedModule.from_parent(parent, path=module_path)
    return None


def pytest_collection_modifyitems(items):
    """Mark every test with its tier, so that `-m host` and the like select, and as slow what `slow.txt` names."""
    slow = set(SLOW.read_text().splitlines())
    for item in items:
        tier = tier_of(item.path)
        if tier:
            item.add_marker(tier)
        if item.nodeid in slow:
            item.add_marker("slow")


def pytest_collection_finish():
    """What is imported and collected stays: the garbage collector need not look through it again, test after test."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter):
    """Below everything else: how many tests of which tier did not run, and why."""
    result = yield
    skipped = [
        tier_of(TESTS.parent / report.nodeid.split("::")[0]) for report in terminalreporter.stats.get("skipped", [])
    ]
    for tier in TIERS:
        if tier in skipped and missing(tier):
            terminalreporter.write_sep(
                "!", f"{skipped.count(tier)} {tier} tests SKIPPED: {missing(tier)}", red=True, bold=True
            )
    return result
