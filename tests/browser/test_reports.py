"""What a node reports of its run is drawn in it, and is no part of the workflow."""

import json

import pytest
from steer.demo.editor import Editor
from steer.demo.runner import ROOT, load_workflow

EDITOR_FORM = ROOT / "example_workflows" / "inversion.json"
CFG_7 = """() => window.comfyAPI.app.app.graph.nodes.find(({ type }) => type === 'SteerCFGGuider')
    .widgets.find(({ name }) => name === 'cfg').value = 7"""
NEW_NODES = "on => window.comfyAPI.app.app.ui.settings.setSettingValueAsync('Comfy.VueNodes.Enabled', on)"


@pytest.fixture(scope="module")
def editor(server):
    with Editor(server.url) as opened:
        yield opened


@pytest.fixture(scope="module")
def newer(server):
    """Whether this ComfyUI sends reports again where a result is taken from the cache, and has Nodes 2.0."""
    return bool(server.object_info()["SteerDDIMInversion"].get("has_intermediate_output"))


@pytest.mark.parametrize("new_nodes", [False, True])
def test_an_inversion_says_how_far_it_is_off(editor, newer, new_nodes):
    if new_nodes and not newer:
        pytest.skip("this ComfyUI has no Nodes 2.0")
    if newer:
        editor.page.evaluate(NEW_NODES, new_nodes)
    workflow, nodes = json.loads(EDITOR_FORM.read_text()), load_workflow("inversion")
    (inversion,) = (key for key, node in nodes.items() if node["class_type"] == "SteerDDIMInversion")
    editor.load(workflow, "inversion")
    before = editor.prompt()
    assert editor.run() == "execution_success"
    editor.page.get_by_text("Sampled back").first.wait_for()
    assert "largest error" in editor.reports()[inversion]
    assert editor.prompt() == before and "steer_report" not in json.dumps(editor.workflow())
    if not newer:
        return
    editor.page.reload()
    editor.page.wait_for_function("() => window.comfyAPI?.app?.app?.graph?.nodes?.length")
    editor.load(workflow, "inversion")
    assert editor.run() == "execution_success"  # from the cache
    editor.page.get_by_text("Sampled back").first.wait_for()


def test_one_that_does_not_hold_is_a_warning(editor):
    editor.load(json.loads(EDITOR_FORM.read_text()), "inversion")
    editor.page.evaluate(CFG_7)
    assert editor.run() == "execution_success"
    editor.page.locator(".p-toast").get_by_text("The inversion does not hold").wait_for()
    (text,) = editor.reports().values()
    assert text.startswith("The inversion does not hold: the guider is at cfg 7")
