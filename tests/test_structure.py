"""The import tree of design: nodes -> {samplers, attention, pictures, files} -> torch, and files -> samplers."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from steer.lab.package import ROOT

STANDARD = set(sys.stdlib_module_names)


def imports(path):
    """(level, dotted name) of each import of a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.level, node.module or ""


@pytest.mark.parametrize(
    ("folder", "libraries", "others"),
    [
        ("samplers", set(), set()),
        ("attention", set(), {"samplers.window"}),
        ("pictures", {"numpy", "scipy", "PIL"}, set()),  # the host requires them all
        ("files", {"safetensors"}, {"samplers"}),
    ],
)
def test_math_imports_torch_alone(folder, libraries, others):
    for path in (ROOT / folder).glob("*.py"):
        for level, name in imports(path):
            known = level == 1 or level == 2 and {name, name.split(".")[0]} & others
            assert known or name.split(".")[0] in STANDARD | {"torch"} | libraries, f"{path.name} imports {name}"


def test_only_host_reads_host_internals():
    words = (
        "transformer_options",
        "model_options",
        "model_sampling.",
        "inner_model",
        "noise_mask",
        "get_model_object(",
    )
    allowed = {"sdedit.py": {"get_model_object("}}
    for path in (ROOT / "nodes").glob("*.py"):
        if not path.name.startswith("_host"):
            found = {word for word in words if word in path.read_text()}
            assert found <= allowed.get(path.name, set()), f"{path.name} reads {found}"


def test_package_imports_without_the_host_or_torch():
    code = (
        "import sys, importlib.util as u\n"
        f"s = u.spec_from_file_location('steer', r'{ROOT / '__init__.py'}', submodule_search_locations=[r'{ROOT}'])\n"
        "m = u.module_from_spec(s); sys.modules['steer'] = m; s.loader.exec_module(m)\n"
        "assert 'torch' not in sys.modules and 'comfy' not in sys.modules\n"
        "import steer.samplers.repaint, steer.samplers.blended_diffusion, steer.samplers.sdedit\n"
        "import steer.attention, steer.files.inversion_file, steer.pictures.stitch\n"
        "assert 'comfy' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(ROOT).anchor)


def test_no_forbidden_calls_in_the_package():
    forbidden = {"eval", "exec", "compile", "__import__"}
    modules = {"pickle", "subprocess", "socket", "urllib", "requests", "http"}
    for folder in ("nodes", "samplers", "attention", "pictures", "files"):
        for path in (ROOT / folder).glob("*.py"):
            tree = ast.parse(path.read_text())
            calls = {n.func.id for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
            assert not calls & forbidden and not {name.split(".")[0] for _, name in imports(path)} & modules
