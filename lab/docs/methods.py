"""The table of docs/methods.md, from the classes, the papers that their docstrings name, and the workflows."""

import ast
import inspect
import re
from pathlib import Path

from ..demo.runner import load_workflow, workflow_names
from ..package import ROOT
from .template_table import TABLE

PAGE = ROOT / "docs" / "methods.md"
MATHS = ("samplers", "attention", "pictures", "files")
BEGIN, END = "<!-- methods: `make docs` writes this table -->\n", "<!-- end of methods -->\n"
PAPER = re.compile(r"\b\d{4}\.\d{4,5}\b|doi:10\.[^\s),]+")
SHOWN = 4
"""Workflows in a row, but for those that are the example of it."""


def files() -> dict[Path, str]:
    """The page with its table as the nodes are now; what is around the table is by hand."""
    from steer.nodes import METHODS

    above, _, rest = PAGE.read_text().partition(BEGIN)
    below = rest.partition(END)[2]
    count = sum(len(method.NODES) for method in METHODS)
    lines = [
        f"{count} nodes:",
        "",
        "| method | papers | mathematics | nodes | workflows |",
        "|---|---|---|---|---|",
        *map(row, METHODS),
    ]
    return {PAGE: above + BEGIN + "\n".join(lines) + "\n" + END + below}


def row(method) -> str:
    """A method's line: what its module says of it, and what is to be found under its stem."""
    stem = method.__name__.rpartition(".")[2]
    maths = next(path for folder in MATHS if (path := ROOT / folder / f"{stem}.py").is_file())
    schemas = [node.GET_SCHEMA() for node in method.NODES]
    nodes = [f"{schema.display_name.removesuffix(' (Steer)')} (`{schema.node_id}`)" for schema in schemas]
    cells = (
        inspect.getdoc(method).splitlines()[0].removesuffix("."),
        ", ".join(map(_link, papers(maths, Path(method.__file__)))) or "–",
        f"`{maths.relative_to(ROOT).as_posix()}`",
        ", ".join(nodes),
        workflows({schema.node_id for schema in schemas}),
    )
    return f"| {' | '.join(cells)} |"


def papers(*paths: Path) -> list[str]:
    """What the docstrings of these files cite, by arXiv id or doi, in their order."""
    trees = [ast.parse(path.read_text()) for path in paths]
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef
    texts = [ast.get_docstring(node) or "" for tree in trees for node in ast.walk(tree) if isinstance(node, kinds)]
    return list(dict.fromkeys(re.findall(PAPER, "\n".join(texts))))


def workflows(node_ids: set[str]) -> str:
    """The example workflows with one of these nodes: those made to show it, then some of the smallest others."""
    graphs = {name: load_workflow(name) for name in workflow_names()}
    using = [name for name, graph in graphs.items() if any(node["class_type"] in node_ids for node in graph.values())]
    mains = list(dict.fromkeys(template.api for template in TABLE if template.main in node_ids))
    others = sorted(set(using) - set(mains), key=lambda name: (len(graphs[name]), name))
    shown = mains + others[: max(0, SHOWN - len(mains))]
    more = len(using) - len(shown)
    return ", ".join(f"`{name}`" for name in shown) + (f" and {more} more" if more else "")


def _link(paper: str) -> str:
    name = paper.removeprefix("doi:")
    return f"[{name}](https://{'doi.org' if name != paper else 'arxiv.org/abs'}/{name})"
