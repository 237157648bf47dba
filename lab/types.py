"""The types, checked by pyright as `pyproject.toml` says; a developer's tool.

    python -m lab.types

basedpyright is pyright with a node of its own, so that it needs no network once it is installed. It comes with the
first check and not with the environment: where it cannot be had or cannot run, this says so, and nothing else stops.
"""

import subprocess
import sys

from .package import ROOT

CHECKER = "basedpyright==1.40.2"
PIP = ["pip", "install", "--quiet", "--disable-pip-version-check", "--retries=1", "--timeout=15"]


def main() -> int:
    """Check the types; the exit code, which is 0 where there is no checker."""
    if not (is_there() or (_module(*PIP, CHECKER) == 0 and is_there())):
        print(f"The types are not checked: {CHECKER} cannot be installed or does not run here.", file=sys.stderr)
        return 0
    return _module("basedpyright", "--pythonpath", sys.executable, "--project", str(ROOT))


def is_there() -> bool:
    """Whether this environment has the checker, of this version, and it runs."""
    told = subprocess.run([sys.executable, "-m", "basedpyright", "--version"], capture_output=True, text=True)
    return told.returncode == 0 and CHECKER.partition("==")[2] in told.stdout.split()


def _module(*arguments: str) -> int:
    return subprocess.run([sys.executable, "-m", *arguments]).returncode


if __name__ == "__main__":
    sys.exit(main())
