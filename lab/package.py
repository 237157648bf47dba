"""Load this checkout as the package `steer`.

The checkout's folder may be called anything (a hyphen, a version), and its `nodes` folder has the name of the
host's own `nodes` module. So the package gets a fixed alias, and the checkout is taken off `sys.path`.
"""

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"  # made by lab/env.py
ALIAS = "steer"


def load_steer() -> ModuleType:
    """The package `steer`, loaded from this checkout; the second call returns the same module."""
    _take_root_off_path()
    if ALIAS in sys.modules:
        return sys.modules[ALIAS]
    spec = importlib.util.spec_from_file_location(ALIAS, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    module = importlib.util.module_from_spec(spec)
    sys.modules[ALIAS] = module
    spec.loader.exec_module(module)
    return module


def _take_root_off_path() -> None:
    """With the checkout on `sys.path`, `import nodes` would give ours instead of the host's."""
    sys.path[:] = [entry for entry in sys.path if not os.path.realpath(entry or os.getcwd()) == str(ROOT)]
