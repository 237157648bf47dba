"""Saved workflows hold node ids, input names, order, types and defaults: this snapshot is what they rely on.

`make docs` writes additions into the snapshot; anything else here breaks users' files, and it refuses that.
"""

import json

from steer.lab.docs.contract import PATH, contract
from steer.lab.package import ROOT
from steer.nodes import METHODS


def test_snapshot():
    assert contract() == json.loads(PATH.read_text())


def test_every_input_and_output_has_a_tooltip_and_every_node_a_help_page():
    for node in (node for method in METHODS for node in method.NODES):
        schema = node.GET_SCHEMA()
        for item in [*schema.inputs, *schema.outputs]:
            assert item.tooltip, f"{schema.node_id}.{item.id} has no tooltip"
        page = (ROOT / "web" / "docs" / f"{schema.node_id}.md").read_text()
        assert all(f"`{item.id}`" in page for item in schema.inputs), f"{schema.node_id}.md misses an input"
        assert schema.description and schema.category.startswith("Steer/")


def test_one_stem_in_every_place():
    for method in METHODS:
        stem = method.__name__.rpartition(".")[2]
        maths = ("samplers", "attention", "pictures", "files")
        assert any((ROOT / folder / f"{stem}.py").is_file() for folder in maths), stem
        for place in (f"tests/test_{stem}.py", f"tests/host/test_{stem}.py"):
            assert (ROOT / place).is_file(), f"{place} is missing"
