"""Make the blueprints, and the apps built on them, with the host's real editor.

    make docs ARGS=blueprints

Opens the API form of each workflow in `blueprint_table`, makes one node of all but loaders and savers, with the inputs
that the table names, and saves it as subgraphs/NAME.json: the host offers it in the search for nodes. An app is that
node with loaders and savers around it, and opens as a form: example_workflows/NAME.app.json. Its thumbnail is that of
the template of the same workflow.
"""

import json
import re
import shutil
import uuid
from copy import deepcopy
from pathlib import Path

from ..comfy.editor import Editor
from ..comfy.server import Server
from ..package import ROOT
from ..world.inputs import write_inputs
from .blueprint_table import (
    APPS,
    BLUEPRINTS,
    CHECKPOINT,
    SAVER,
    SOCKETS,
    Blueprint,
    graph_of,
    inside_of,
    saver_of,
    tooltips,
    wires_in,
)
from .template_table import TABLE

SUBGRAPHS = ROOT / "subgraphs"
EXAMPLES = ROOT / "example_workflows"
WIDTH = 400  # pixels, of the node: the editor's least for a text field

CONVERT = """([inner, title, inputs, outputs, width]) => {
    const { graph } = window.comfyAPI.app.app
    const { subgraph, node } = graph.convertToSubgraph(new Set(inner.map(id => graph.getNodeById(id))))
    subgraph.inputs.slice().forEach(input => subgraph.removeInput(input))
    subgraph.outputs.slice().forEach(output => subgraph.removeOutput(output))
    for (const { name, from, to, value } of inputs) {
        let added
        for (const [id, key] of to) {
            const inside = subgraph.getNodeById(id), slot = inside.inputs.find(({ name }) => name === key)
            added ??= subgraph.addInput(name, slot.type)
            added.connect(slot, inside)
        }
        if (from) graph.getNodeById(from[0]).connect(from[1], node, node.inputs.length - 1)
        else node.widgets.find(widget => widget.name === name).value = value
    }
    for (const { name, from, to } of outputs) {
        const inside = subgraph.getNodeById(from[0]), slot = inside.outputs[from[1]]
        subgraph.addOutput(name, slot.type).connect(slot, inside)
        node.connect(node.outputs.length - 1, graph.getNodeById(to), 0)
    }
    subgraph.name = node.title = title
    node.setSize([width, node.computeSize()[1]])
}"""


def main() -> None:
    """Write all blueprints and apps."""
    with Server() as server:
        write_inputs(server.input_folder)
        nodes = server.object_info()
        with Editor(server.url) as editor:
            for name, blueprint in BLUEPRINTS.items():
                workflow = convert(editor, name, blueprint, nodes)
                _write(SUBGRAPHS / f"{name}.json", blueprint_file(workflow))
                for app in APPS:
                    if APPS[app].blueprint == name:
                        _write(EXAMPLES / f"{app}.json", app_file(workflow, app))
                        template = next(each for each in TABLE if each.api == blueprint.workflow)
                        shutil.copyfile(EXAMPLES / f"{template.name}.jpg", EXAMPLES / f"{app}.jpg")


def convert(editor: Editor, name: str, blueprint: Blueprint, nodes: dict) -> dict:
    """The whole job in editor form, with the inside as one node. `nodes`: the host's /object_info."""
    graph = graph_of(blueprint)
    editor.load_api(graph, name)
    inputs = [{"name": socket, "from": origin, "to": to} for socket, (origin, to) in wires_in(blueprint).items()]
    inputs += [
        {"name": label, "to": [widget.place], "value": widget.value} for label, widget in blueprint.widgets.items()
    ]
    outputs = [
        {"name": label, "from": output, "to": saver_of(graph, output)} for label, output in blueprint.outputs.items()
    ]
    editor.page.evaluate(CONVERT, [list(inside_of(blueprint)), name, inputs, outputs, WIDTH])
    editor.place(_places(editor.workflow()["nodes"]))
    workflow = editor.workflow()
    (inside,) = workflow["definitions"]["subgraphs"]
    inside |= {"description": blueprint.description, "category": "Steer"}
    inside["extra"] |= {"steer_tooltips": tooltips(blueprint, nodes)}
    return workflow


def blueprint_file(workflow: dict) -> dict:
    """What the host serves: the one node, without wires, and what is inside it."""
    definitions = workflow["definitions"]
    (node,) = deepcopy([node for node in workflow["nodes"] if node["type"] == definitions["subgraphs"][0]["id"]])
    for slot in node["inputs"]:
        slot["link"] = None
    for slot in node["outputs"]:
        slot["links"] = []
    node |= {"pos": [0, 0], "order": 0}
    head = {"revision": 0, "last_node_id": node["id"], "last_link_id": 0, "version": 0.4}
    return head | {"nodes": [node], "links": [], "definitions": definitions}


def app_file(workflow: dict, name: str) -> dict:
    """The whole job as a form; it shows what the blueprint returns first."""
    app, workflow = APPS[name], deepcopy(workflow)
    blueprint = BLUEPRINTS[app.blueprint]
    nodes = {node.get("title", node["type"]): node for node in workflow["nodes"]}
    checkpoint, picture, job = (nodes[kind] for kind in (*SOCKETS, app.blueprint))
    checkpoint["properties"]["models"] = [CHECKPOINT]
    _fill(checkpoint, {"ckpt_name": CHECKPOINT["name"]})
    _fill(picture, {"image": app.picture})
    _fill(job, app.words)
    owners = {"image": picture["id"], "ckpt_name": checkpoint["id"]}
    shown = [[owners.get(label, job["id"]), label, {"description": line}] for label, line in app.shown.items()]
    result = int(saver_of(graph_of(blueprint), next(iter(blueprint.outputs.values()))))
    workflow["extra"] |= {"linearMode": True, "linearData": {"inputs": shown, "outputs": [result]}}
    return workflow


def _fill(node: dict, values: dict) -> None:
    named = node["widgets_values_named"]
    named |= values
    node["widgets_values"] = list(named.values())


def _places(nodes: list[dict]) -> list[tuple]:
    """(id, x, y, width, height) of each node around a blueprint: loaders to its left, savers to its right."""
    left = {"CheckpointLoaderSimple": (0, 0, 300, 100), "LoadImage": (0, 180, 300, 340)}
    savers = [node["id"] for node in nodes if node["type"] == SAVER]
    places = [(savers[row], 880, 400 * row, 300, 340) for row in range(len(savers))]
    places += [(node["id"], *left[node["type"]]) for node in nodes if node["type"] in left]
    return places + [(node["id"], 390, 0, *node["size"]) for node in nodes if node["type"] not in (*left, SAVER)]


def _write(path: Path, workflow: dict) -> None:
    """The same text for the same content: ids that the editor drew at random are replaced by ones made of the name."""
    text, ids = json.dumps(workflow, indent=1) + "\n", {}
    for found in re.findall(r"\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b", text):
        ids.setdefault(found, str(uuid.uuid5(uuid.NAMESPACE_URL, f"steer/{path.name}/{len(ids)}")))
    for found, replacement in ids.items():
        text = text.replace(found, replacement)
    path.write_text(text)
    print(path)
