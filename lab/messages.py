"""Every message of a ValueError in the package, a line each, with {} for what is filled in.

python -m lab.messages [FOLDER]        of this checkout, or of another; what changed is told by diff
"""

import ast
import sys
from pathlib import Path

from .package import ROOT

FOLDERS = "nodes", "samplers", "attention", "pictures", "files"


def text_of(node: ast.expr) -> str:
    """A string as it stands in the source; what is computed is {}."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(map(text_of, node.values))
    if isinstance(node, ast.BinOp):
        return text_of(node.left) + text_of(node.right)
    return "{}"


def messages(root: Path) -> list[str]:
    """The messages of a checkout, sorted, each once."""
    trees = [ast.parse(path.read_text()) for folder in FOLDERS for path in (root / folder).rglob("*.py")]
    raised = (node.exc for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Raise))
    calls = (exc for exc in raised if isinstance(exc, ast.Call) and ast.unparse(exc.func) == "ValueError" and exc.args)
    return sorted({text_of(call.args[0]).removeprefix("{}: ") for call in calls})


if __name__ == "__main__":
    print("\n".join(messages(Path(sys.argv[1]) if sys.argv[1:] else ROOT)))
