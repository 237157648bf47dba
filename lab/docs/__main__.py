"""Write what follows from the nodes: `make docs`, or some of its parts by `make docs ARGS="contract help"`."""

import importlib
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from types import ModuleType

from ..comfy.find import find_host, load_host
from ..demo.runner import OUTPUT, workflow_names
from ..package import ROOT, load_steer

MATRICES = "tests/host/test_families.py", "tests/host/test_samplers.py"


class Skipped(Exception):
    """A part that cannot be written here, and why."""


def main(wanted: list[str]) -> int:
    """Write these parts, or all; the exit code is 1 where one was refused."""
    if unknown := set(wanted) - PARTS.keys():
        return _fail(f"there is no part {', '.join(sorted(unknown))}; the parts are {', '.join(PARTS)}")
    if find_host() is None:
        return _fail("this needs ComfyUI: set COMFYUI_PATH, or clone it to ~/comfy/ComfyUI")
    load_steer()
    load_host(find_host())
    failed = [name for name in PARTS if name in (wanted or PARTS) and not write(name)]
    return int(bool(failed))


def write(name: str) -> bool:
    """Write one part and say what came of it; whether nothing was in the way."""
    try:
        PARTS[name]()
    except Skipped as reason:
        print(f"{name}: skipped, {reason}")
    except (ValueError, FileNotFoundError, subprocess.CalledProcessError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return False
    else:
        print(f"{name}: done")
    return True


def contract() -> None:
    """tests/host/contract.json: additions alone."""
    _write(_module("contract"))


def help_inputs() -> None:
    """The lists of inputs in web/docs. Before the locales, which hold the tooltips as they were."""
    _write(_module("help_inputs"))


def locales() -> None:
    """locales/en, and what is to be translated."""
    _module("locales").update()


def methods() -> None:
    """docs/methods.md."""
    _write(_module("methods"))


def tables() -> None:
    """docs/families.md and docs/samplers.md, by the tests that find what they say."""
    environment = {**os.environ, "STEER_WRITE": "1"}
    subprocess.run([sys.executable, "-m", "pytest", "-q", "-n", "0", *MATRICES], cwd=ROOT, env=environment, check=True)


def pictures() -> None:
    """web/docs/pictures and docs/jobs.jpg."""
    _need_demo()
    _module("help_pictures").main()


def templates() -> None:
    """The editor forms in example_workflows, and their thumbnails."""
    _need_browser()
    _need_demo()
    _module("editor_form").main([])


def blueprints() -> None:
    """subgraphs/, and the apps."""
    _need_browser()
    _module("blueprints").main()


PARTS = {
    "contract": contract,
    "help": help_inputs,
    "locales": locales,
    "methods": methods,
    "tables": tables,
    "pictures": pictures,
    "templates": templates,
    "blueprints": blueprints,
}


def _module(name: str) -> ModuleType:
    """Of the package `steer`: of this file's own package there is a copy beside it, which has no nodes."""
    return importlib.import_module(f"steer.lab.docs.{name}")


def _write(module: ModuleType) -> None:
    for path, text in module.files().items():
        if not path.is_file() or path.read_text() != text:
            path.write_text(text)
            print(f"wrote {path.relative_to(ROOT)}")


def _need_demo() -> None:
    missing = [name for name in workflow_names() if not (OUTPUT / f"{name}_1.png").is_file()]
    if missing:
        raise Skipped(f"as {OUTPUT.relative_to(ROOT)} has no pictures of {', '.join(missing)}: run `make demo` first")


def _need_browser() -> None:
    if find_spec("playwright") is None or not shutil.which("chromium"):
        raise Skipped("as chromium or playwright is not installed")


def _fail(reason: str) -> int:
    print(reason, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
