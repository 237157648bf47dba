"""Every node on every model family: each cell of docs/families.md is an oracle that held, or the error users get.

`make docs ARGS=tables` runs this with STEER_WRITE=1, which writes the page; else it has to be what was found.
"""

import os
import re
from string import ascii_lowercase

import folder_paths
import pytest
from steer.lab.package import ROOT
from steer.nodes import NODES
from steer.nodes.host.attention.families import REFUSED, TRANSFORMERS, UNETS
from steer.tests.cases import checkered
from steer.tests.families import ALL, FAMILIES
from steer.tests.matrices import collected

PAGE = ROOT / "docs" / "families.md"
NODE_IDS = [node.define_schema().node_id for node in NODES]
ORACLES = collected("ORACLE")
ATTENTION = (
    "SteerCaptureAttention",
    "SteerAttentionHeatmap",
    "SteerPaintWithWords",
    "SteerPromptToPromptGuider",
    "SteerInjectAttention",
)
PAIRS = "two prompts do not go through a transformer together yet; SteerEditGuider edits from one to another"
CELLS: dict[tuple[str, str], str] = {}


@pytest.fixture(autouse=True)
def folders(tmp_path_factory, monkeypatch):
    output = tmp_path_factory.getbasetemp() / "families_output"
    output.mkdir(exist_ok=True)
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(output))


def test_every_node_has_an_oracle():
    assert sorted(ORACLES) == sorted(NODE_IDS)


@pytest.mark.parametrize("node_id, family", checkered(NODE_IDS, FAMILIES, 3), ids=lambda value: str(value))
def test_works_or_says_why_not(family, node_id):
    try:
        ORACLES[node_id][1](family)
        CELLS[node_id, family.name] = ""
    except ValueError as error:
        assert str(error).startswith("Steer"), error
        CELLS[node_id, family.name] = str(error)
    if not os.environ.get("STEER_WRITE"):
        assert CELLS[node_id, family.name].partition(": ")[2] == written(node_id, family)


def written(node_id, family) -> str:
    """What the page says of a cell, in the node's words without its name."""
    text = PAGE.read_text()
    rows = re.findall(rf"^\| `{node_id}` \| (.*) \|$", text, re.MULTILINE)
    assert rows, f"run `make docs ARGS=tables`: {PAGE.name} has no {node_id}"
    sign = rows[0].split(" | ")[ALL.index(family)]
    return "" if sign == "+" else dict(re.findall(r"^(\d+)\. (.*)$", text, re.MULTILINE))[sign]


def page() -> str:
    """docs/families.md"""
    notes: list[str] = []
    lines = [
        "# Which node works with which model family",
        "",
        "Found by `tests/host/test_families.py`, on small models with random weights made by ComfyUI's own classes.",
        "+ works: what is listed below was shown. A number: what the node says instead, before the model runs.",
        "",
        "| node | " + " | ".join(family.name for family in FAMILIES) + " |",
        "|---" * (1 + len(FAMILIES)) + "|",
    ]
    for node_id in NODE_IDS:
        said = [CELLS[node_id, family.name].partition(": ")[2] for family in FAMILIES]
        notes += [text for text in dict.fromkeys(said) if text and text not in notes]
        lines.append(f"| `{node_id}` | " + " | ".join(f"{notes.index(s) + 1}" if s else "+" for s in said) + " |")
    lines += ["", *(f"{number}. {text}" for number, text in enumerate(notes, 1)), "", "What each + has shown:", ""]
    lines += [f"- `{node_id}`: {ORACLES[node_id][0]}" for node_id in NODE_IDS]
    return "\n".join(lines) + "\n\n" + attention_page()


def attention_page() -> str:
    """The part on attention, of the records that the nodes go by."""
    notes = [PAIRS, *dict.fromkeys(reason for _, reason in REFUSED.values())]
    rows = [(UNETS.name, "+" * len(ATTENTION)), *((family.name, "+++aa") for family in TRANSFORMERS)]
    rows += [(name, ascii_lowercase[notes.index(reason)] * len(ATTENTION)) for name, reason in REFUSED.values()]
    lines = [
        "## Attention",
        "",
        "The models whose layers are known (`nodes/host/attention/families.py`). What + says of transformers is shown",
        "by `tests/host/test_transformers.py` on small models of each: painted runs are the paper's formula with all",
        "maps written out, heat is the mean of the maps, and runs that are only looked at are plain ones bit for bit.",
        "",
        f"| model | {' | '.join(f'`{node_id}`' for node_id in ATTENTION)} |",
        "|---" * (1 + len(ATTENTION)) + "|",
        *(f"| {name} | {' | '.join(signs)} |" for name, signs in rows),
        "",
        *(f"- {letter}: {note}" for letter, note in zip(ascii_lowercase, notes, strict=False)),
    ]
    return "\n".join(lines) + "\n"


def test_the_part_on_attention_is_that_of_the_records():
    if not os.environ.get("STEER_WRITE"):
        assert PAGE.read_text().endswith(attention_page())


def test_the_page_says_what_was_found():
    if len(CELLS) < len(NODE_IDS) * len(ALL):
        pytest.skip("only a part of the matrix was run, a cell failed, or this ComfyUI has not all families")
    if os.environ.get("STEER_WRITE"):
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(page())
    assert PAGE.read_text() == page()
