"""The blueprints and apps in the host's real editor: found, wired, run; the picture is that of the long graph."""

import json
import shutil
from urllib.error import HTTPError

import numpy as np
import pytest
from steer.lab.comfy.editor import Editor
from steer.lab.comfy.server import Server
from steer.lab.demo.runner import load_workflow
from steer.lab.docs.blueprint_table import APPS, BLUEPRINTS, CHECKPOINT, saver_of, specification, tooltips, wires_in
from steer.lab.package import ROOT
from steer.lab.weights import CHECKPOINT as SHAPES
from steer.lab.world.inputs import write_inputs
from steer.tests.cases import some

QUICK = {"steps": 6, "inner": 2, "mask samples": 2, "pictures": 1}
"""In place of the API form's numbers."""
CLEAR = "() => window.comfyAPI.app.app.graph.clear()"
NEW_NODES = "on => window.comfyAPI.app.app.ui.settings.setSettingValueAsync('Comfy.VueNodes.Enabled', on)"
PROMPTLY = "() => window.comfyAPI.app.app.ui.settings.setSettingValueAsync('LiteGraph.Node.TooltipDelay', 0)"
SURROUND = """([wires, values, outputs]) => {
    const { graph } = window.comfyAPI.app.app, [job] = graph.nodes, added = {}
    const add = (type, [name, value]) => {
        const node = LiteGraph.createNode(type)
        graph.add(node)
        node.widgets.find(widget => widget.name === name).value = value
        return node
    }
    for (const [socket, type, slot, widget] of wires)
        (added[type] ??= add(type, widget)).connect(slot, job, job.findInputSlot(socket))
    for (const [name, value] of Object.entries(values)) job.widgets.find(widget => widget.name === name).value = value
    return outputs.map(name => {
        const saver = add('SaveImage', ['filename_prefix', 'blueprint'])
        job.connect(job.findOutputSlot(name), saver, 0)
        return String(saver.id)
    })
}"""
"""Around the only node of the graph: loaders by socket, its widgets' values, and a saver for each output; their ids."""


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    """A host that has the shapes checkpoint under the name of the one that the apps load, and the apps' pictures."""
    checkpoint = tmp_path_factory.mktemp("checkpoints") / CHECKPOINT["name"]
    shutil.copyfile(SHAPES, checkpoint)
    with Server(checkpoint=checkpoint) as running:
        try:
            running.get_json("/global_subgraphs")
        except HTTPError:
            pytest.skip("this ComfyUI serves no blueprints")
        pictures = write_inputs(running.input_folder)
        shutil.copyfile(pictures["photo"], running.input_folder / "steer_cat.webp")
        shutil.copyfile(pictures["inpaint"], running.input_folder / "steer_coffee_hole.webp")
        yield running


@pytest.fixture(scope="module")
def editor(host):
    with Editor(host.url) as opened:
        opened.page.evaluate(PROMPTLY)
        yield opened


@pytest.fixture
def added(request, editor):
    """The name of a blueprint that was searched for and put on an empty canvas."""
    name, new_nodes = request.param
    editor.page.evaluate(NEW_NODES, new_nodes)
    editor.page.evaluate(CLEAR)
    editor.add(name.removesuffix(" (Steer)").lower(), name, "Blueprint")
    return name


def each(new_nodes: bool):
    cases = [(name, new_nodes) for name in BLUEPRINTS]
    return pytest.mark.parametrize("added", some(cases, *cases[:2]), indirect=True, ids=BLUEPRINTS)


@each(False)
def test_gives_the_picture_of_the_long_graph(added, editor, host):
    """With the same values, to the last bit; with five nodes and six wires at most."""
    table, long = BLUEPRINTS[added], load_workflow(BLUEPRINTS[added].workflow)
    loaders = {"CheckpointLoaderSimple": "ckpt_name", "LoadImage": "image"}
    wires = []
    for socket, ((node, slot), _) in wires_in(table).items():
        kind = long[node]["class_type"]
        wires.append([socket, kind, slot, [loaders[kind], long[node]["inputs"][loaders[kind]]]])
    values = {}
    for label, ((node, key), *_) in table.widgets.items():
        values[label] = long[node]["inputs"][key] = QUICK.get(label, long[node]["inputs"][key])
    results = [label for label in table.outputs if label not in ("heatmap", "mask")]
    savers = editor.page.evaluate(SURROUND, [wires, values, results])
    graph = editor.workflow()
    assert len(graph["nodes"]) <= 5 and len(graph["links"]) <= 6
    assert editor.run() == "execution_success"
    (job,) = host.get_json("/history?max_items=1").values()
    short = dict(host.images(job["outputs"]))
    expected = dict(host.images(host.run(long)))
    for label, saver in zip(results, savers, strict=True):
        np.testing.assert_array_equal(short[saver], expected[saver_of(long, table.outputs[label])])


@each(True)
def test_every_widget_has_its_tooltip(added, editor, host):
    """Of the table, or of the node inside as it is now; seen on hovering."""
    table, kinds = BLUEPRINTS[added], host.object_info()
    expected = tooltips(table, kinds)
    folded = {label for label, widget in table.widgets.items() if specification(table, widget, kinds).get("advanced")}
    shown = [label for label in table.widgets if label not in folded]
    widgets = editor.page.get_by_test_id("node-widget")
    widgets.nth(len(shown) - 1).wait_for()
    rows = widgets.all()
    labels = shown if len(rows) == len(shown) else table.widgets  # not every editor folds them
    for label, widget in zip(labels, rows, strict=True):
        assert widget.get_by_text(label, exact=True).count()
        box = widget.bounding_box()
        editor.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        editor.page.get_by_role("tooltip").get_by_text(expected[label]).first.wait_for()


@pytest.mark.parametrize("app", some(APPS, next(iter(APPS))))
def test_an_app_opens_as_a_form_and_runs(app, editor, host):
    """What is typed into the form is what is run."""
    templates = host.get_json("/workflow_templates")
    assert any(app in names for names in templates.values())
    workflow = json.loads((ROOT / "example_workflows" / f"{app}.json").read_text())
    for node in workflow["nodes"]:
        named = node["widgets_values_named"]
        named |= {label: value for label, value in QUICK.items() if label in named}
        node["widgets_values"] = list(named.values())
    editor.load(workflow, app)
    page, words = editor.page, next(iter(APPS[app].words))
    form = page.get_by_test_id("linear-widgets")
    form.get_by_text(words, exact=True).wait_for()
    for label, line in APPS[app].shown.items():
        assert form.get_by_text(label, exact=True).count() and form.get_by_text(line).count()
    skip = page.get_by_role("button", name="Skip")
    if skip.count():  # the editor's own tour
        skip.click()
    form.locator("textarea").first.fill("a red heart above a yellow star")
    number = len(host.get_json("/history"))
    page.get_by_test_id("linear-run-button").get_by_role("button", name="Run").click()
    for _ in range(600):
        if len(history := host.get_json("/history")) > number:
            break
        page.wait_for_timeout(200)
    job = list(history.values())[-1]
    assert job["status"]["status_str"] == "success"
    assert "a red heart above a yellow star" in json.dumps(job["prompt"][2])
    (result,) = workflow["extra"]["linearData"]["outputs"]
    page.get_by_text(job["outputs"][str(result)]["images"][0]["filename"]).first.wait_for()
