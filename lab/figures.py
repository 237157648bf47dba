"""Figures of the shape of the code: `python -m lab.figures [FOLDER ...]`, a column for each checkout."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

from .package import ROOT

LONG_FILE, LONG_FUNCTION = 200, 25
PURE = "samplers", "attention", "pictures", "files"


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def classes(tree: ast.AST) -> Iterator[ast.ClassDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef))


def facade(root: Path) -> int:
    """How many names the facade gives; 0 where there is none."""
    path = root / "nodes" / "host" / "__init__.py"
    tree = ast.parse(path.read_text()) if path.exists() else ast.Module([], [])
    lists = [node.value for node in ast.walk(tree) if isinstance(node, ast.Assign)]
    return sum(len(ast.literal_eval(value)) for value in lists)


def taken_of_modules(root: Path) -> set[str]:
    """`module.name` of what faces and runs take of the modules that the facade gives."""
    path = root / "nodes" / "host" / "__init__.py"
    tree = ast.parse(path.read_text()) if path.exists() else ast.Module([], [])
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    modules = {alias.name for node in imports if node.module is None for alias in node.names}
    taken: set[str] = set()
    for path in [*(root / "nodes").glob("*.py"), *(root / "nodes" / "runs").glob("*.py")]:
        nodes = list(ast.walk(ast.parse(path.read_text())))
        doors = [node for node in nodes if isinstance(node, ast.ImportFrom) and node.module == "host"]
        names = {alias.asname or alias.name: alias.name for node in doors for alias in node.names}
        for node in nodes:
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                name = names.get(node.value.id)
                taken |= {f"{name}.{node.attr}"} if name in modules else set()
    return taken


def figures(root: Path) -> dict[str, int]:
    """The figures of one checkout, by name."""
    sources = {path: path.read_text() for path in sorted((root / "nodes").rglob("*.py"))}
    trees = {path: ast.parse(text) for path, text in sources.items()}
    pure = [path.read_text() for folder in PURE for path in sorted((root / folder).rglob("*.py"))]
    boundary = {path: tree for path, tree in trees.items() if not path.parent == root / "nodes" or "_host" in path.name}
    calls = [ast.unparse(node.func) for tree in trees.values() for node in ast.walk(tree) if isinstance(node, ast.Call)]
    bases = [ast.unparse(base) for tree in trees.values() for node in classes(tree) for base in node.bases]
    sampling = [
        node.name
        for tree in trees.values()
        for node in classes(tree)
        if any(child.name == "sample" and len(child.args.args) > 4 for child in functions(node))
    ]
    lengths = [
        node.end_lineno - node.lineno + 1
        for tree in trees.values()
        for node in functions(tree)
        if node.name != "define_schema"
    ]
    return {
        "lines of nodes/": sum(text.count("\n") for text in sources.values()),
        "of these, host and runs": sum(sources[path].count("\n") for path in boundary),
        "of these, define_schema": sum(
            node.end_lineno - node.lineno + 1
            for tree in trees.values()
            for node in functions(tree)
            if node.name == "define_schema"
        ),
        f"files of nodes/ over {LONG_FILE} lines": sum(text.count("\n") > LONG_FILE for text in sources.values()),
        f"functions of nodes/ over {LONG_FUNCTION} lines, but schemas": sum(n > LONG_FUNCTION for n in lengths),
        "range checks (check_number, whole_number)": sum(
            call.split(".")[-1] in ("check_number", "whole_number") for call in calls
        ),
        "places that name errors (errors_of)": calls.count("errors_of"),
        "subclasses of the host's Sampler": sum(base.endswith(".Sampler") for base in bases),
        "classes with a sampler's or guider's `sample`": len(sampling),
        "names in the facade": facade(root),
        "names taken of the facade's modules": len(taken_of_modules(root)),
        "lines of the pure floors": sum(text.count("\n") for text in pure),
    }


def main(folders: list[str]) -> None:
    columns = [figures(Path(folder).resolve()) for folder in folders or [ROOT]]
    for name in columns[0]:
        print(f"| {name} | {' | '.join(str(column[name]) for column in columns)} |")


if __name__ == "__main__":
    main(sys.argv[1:])
