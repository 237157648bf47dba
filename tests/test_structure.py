"""The import tree of design: nodes -> {samplers, attention, pictures, files} -> torch, and files -> samplers."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from steer.lab.figures import taken_of_modules
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
        ("attention", set(), {"samplers.window", "samplers.masks"}),
        ("pictures", {"numpy", "scipy", "PIL"}, set()),  # the host requires them all
        ("files", {"safetensors"}, {"samplers"}),
    ],
)
def test_math_imports_torch_alone(folder, libraries, others):
    for path in (ROOT / folder).glob("*.py"):
        for level, name in imports(path):
            known = level == 1 or level == 2 and {name, name.split(".")[0]} & others
            assert known or name.split(".")[0] in STANDARD | {"torch"} | libraries, f"{path.name} imports {name}"


def test_the_world_knows_no_model_and_no_host():
    libraries = STANDARD | {"numpy", "scipy", "PIL", "torch"}
    for path in (ROOT / "lab" / "world").glob("*.py"):
        for level, name in imports(path):
            assert level == 1 or name.split(".")[0] in libraries, f"{path.name} imports {name}"


FACES = sorted((ROOT / "nodes").glob("*.py"))
RUNS = sorted((ROOT / "nodes" / "runs").glob("*.py"))
HOST = sorted((ROOT / "nodes" / "host").rglob("*.py"))
PUBLIC = {"comfy_api"}
"""What of ComfyUI every node may import."""


def of_comfyui(name):
    """Whether a module is ComfyUI's own."""
    top = name.split(".")[0]
    return top.startswith("comfy") or top in {"node_helpers", "latent_preview", "execution", "server"}


@pytest.mark.parametrize("path", [*FACES, *RUNS], ids=lambda path: path.stem)
def test_only_host_knows_comfyui(path):
    """Faces and runs take of `nodes/host/` what its `__init__` gives, and of ComfyUI the public API and its folders."""
    for level, name in imports(path):
        if level == 0:
            assert not of_comfyui(name) or name.split(".")[0] in PUBLIC, f"{path.name} imports {name}"
        elif name.split(".")[0] == "host":
            assert name == "host", f"{path.name} imports {name}, past the facade"


@pytest.mark.parametrize("path", HOST, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_host_imports_no_face_and_no_run(path):
    faces = {face.stem for face in FACES} - {"schema", "picture_inputs"}
    depth = len(path.relative_to(ROOT / "nodes").parts)
    for level, name in imports(path):
        if level == depth:
            assert name.split(".")[0] not in {"runs", *faces}, f"{path.name} imports {name}"


def test_facade_says_what_it_gives():
    """Each name of `nodes/host/__init__.py` is one that a face or a run takes."""
    tree = ast.parse((ROOT / "nodes" / "host" / "__init__.py").read_text())
    (listed,) = (ast.literal_eval(node.value) for node in tree.body if isinstance(node, ast.Assign))
    taken = {
        alias.name
        for path in [*FACES, *RUNS]
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module == "host"
        for alias in node.names
    }
    assert set(listed) == taken and len(listed) == len(taken)


def test_of_the_facades_modules_only_public_names_are_taken():
    taken = taken_of_modules(ROOT)
    assert "progress.tell_empty" in taken and not [name for name in taken if "._" in name]


def bases(path):
    """(class, base) names of a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ClassDef):
            yield from ((node, ast.unparse(base)) for base in node.bases)


def test_one_door():
    """One subclass of the host's Sampler, and one class that overrides a guider's `sample`."""
    samplers = [node.name for path in [*FACES, *RUNS, *HOST] for node, base in bases(path) if base.endswith(".Sampler")]
    sampling = {
        node.name
        for path in [*FACES, *RUNS, *HOST]
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
        for child in node.body
        if isinstance(child, ast.FunctionDef) and child.name == "sample"
    }
    assert samplers == ["RunSampler"] and sampling == {"RunSampler", "RunGuider", "Run"}


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
        for path in (ROOT / folder).rglob("*.py"):
            tree = ast.parse(path.read_text())
            calls = {n.func.id for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
            assert not calls & forbidden and not {name.split(".")[0] for _, name in imports(path)} & modules
