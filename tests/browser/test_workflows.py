"""The example workflows in the host's real editor: they open whole, and queue what their API form says."""

import json

import pytest
from steer.demo.editor import Editor
from steer.demo.runner import ROOT, load_workflow, workflow_names

EXAMPLES = ROOT / "example_workflows"


@pytest.fixture(scope="module")
def editor(server):
    server.run(load_workflow("inversion_file_save"))  # inversion_file_use lists the file that this leaves
    with Editor(server.url) as opened:
        yield opened


@pytest.fixture(scope="module", params=workflow_names())
def opened(request, editor):
    """(name, the editor form as saved), with that workflow open in the editor."""
    workflow = json.loads((EXAMPLES / f"{request.param}.json").read_text())
    editor.load(workflow, request.param)
    return request.param, workflow


def test_every_node_is_there_and_without_fault(opened, editor):
    """No missing type, model or input picture, and no value that its list lacks."""
    nodes = editor.nodes()
    assert [node for node in nodes if node["missing"] or node["marked"] or node["refused"]] == []
    assert {node["id"] for node in nodes} == {str(node["id"]) for node in opened[1]["nodes"]}


def test_every_link_is_there(opened, editor):
    assert sorted(editor.workflow()["links"]) == sorted(opened[1]["links"])


def test_queues_the_api_form(opened, editor):
    assert editor.prompt() == load_workflow(opened[0])


def test_nodes_do_not_overlap(opened):
    boxes = [(*node["pos"], *node["size"]) for node in opened[1]["nodes"]]
    title = 30  # drawn above a node's position
    for number, (x, y, width, height) in enumerate(boxes):
        for left, top, other_width, other_height in boxes[:number]:
            apart = x + width <= left or left + other_width <= x
            assert apart or y + height <= top - title or top + other_height <= y - title


def test_every_form_is_there():
    """API form, editor form and thumbnail of each workflow; none of another."""
    forms = {path.stem for path in EXAMPLES.glob("*.json")}
    thumbnails = {path.stem for path in EXAMPLES.glob("*.jpg")}
    assert forms == thumbnails == set(workflow_names())
