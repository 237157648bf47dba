"""The list of inputs in a help page: names, defaults and ranges from the schema, the words by hand.

Between BEGIN and END each line is "- `name` (default; least to most) – words". What is before the dash is written here.
The words are the author's; an input without any gets its tooltip, and keeps up with it.
"""

import re
import textwrap
from collections.abc import Mapping
from pathlib import Path

from ..package import ROOT
from . import locales

DOCS = ROOT / "web" / "docs"
BEGIN, END = "<!-- inputs: `make docs` writes what is before each dash -->\n", "<!-- end of inputs -->\n"
DASH, WIDTH, NO_BREAK = " – ", 120, "\0"


def files() -> dict[Path, str]:
    """The help pages. FileNotFoundError and ValueError say what a page lacks."""
    from steer.nodes import NODES

    written, before = {}, locales.read("en", "nodeDefs.json")
    for schema in (node.GET_SCHEMA() for node in NODES):
        path = DOCS / f"{schema.node_id}.md"
        if not path.is_file():
            raise FileNotFoundError(f"{path.relative_to(ROOT)} is missing: write it, see CONTRIBUTING.md")
        tooltips = {name: text["tooltip"] for name, text in before.get(schema.node_id, {}).get("inputs", {}).items()}
        try:
            written[path] = with_inputs(path.read_text(), schema.inputs, tooltips)
        except ValueError as error:
            raise ValueError(f"{path.relative_to(ROOT)}: {error}") from None
    return written


def with_inputs(page: str, inputs: list, tooltips: Mapping[str, str]) -> str:
    """The page with its list of inputs as the schema has them; `tooltips` as they were when it was last written.

    ValueError where the page has no place for the list, or names what is no input.
    """
    if page.count(BEGIN) != 1 or page.count(END) != 1:
        raise ValueError(f"put these two lines, once, where the list of inputs is to be:\n{BEGIN}{END}")
    above, _, rest = page.partition(BEGIN)
    inside, _, below = rest.partition(END)
    there = {item.id: item for item in inputs}
    lines, named = [], set()
    for line in filter(str.strip, re.split(r"^(?=- `)", inside, flags=re.MULTILINE)):
        names = re.findall(r"`(\w+)`(?: \([^)]*\))?(?:, |$)", line.removeprefix("- ").partition(DASH)[0])
        if not names or not set(names) <= there.keys():
            raise ValueError(f"in the list of inputs this line names none: {line!r}")
        lines.append(_rewritten(line, [there[name] for name in names], tooltips))
        named |= set(names)
    lines += [_line(head([item]), item.tooltip) for item in inputs if item.id not in named]
    return above + BEGIN + "".join(lines) + END + below


def head(items: list) -> str:
    """What stands before the dash, of one input or of several that are explained together."""
    return "- " + ", ".join(f"`{item.id}`{_brackets(item)}" for item in items)


def _rewritten(line: str, items: list, tooltips: Mapping[str, str]) -> str:
    had, _, words = line.partition(DASH)
    plain = " ".join(words.split())
    if len(items) == 1 and plain in ("", tooltips.get(items[0].id)):
        return _line(head(items), items[0].tooltip)
    return line if had == head(items) else _line(head(items), plain)


def _line(before: str, words: str) -> str:
    """Filled; code is not broken, least of all before a minus, which would begin a list."""
    text = re.sub(r"`[^`]*`", lambda code: code[0].replace(" ", NO_BREAK), f"{before}{DASH}{words}")
    filled = textwrap.fill(text, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    return filled.replace(NO_BREAK, " ") + "\n"


def _brackets(item) -> str:
    """The default and the bounds, as far as there are any."""
    default, least = getattr(item, "default", None), getattr(item, "min", None)
    parts = [] if default in (None, "") or "\n" in str(default) else [_shown(default)]
    parts += [] if least is None else [f"{_shown(least)} to {_shown(item.max)}"]
    parts += ["optional"] if item.optional and not parts else []
    return f" ({'; '.join(parts)})" if parts else ""


def _shown(value) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, str):
        return f"`{value}`"
    return "2^64 - 1" if value == 2**64 - 1 else re.sub(r"e\+?(-?)0*", r"e\1", f"{value:g}")
