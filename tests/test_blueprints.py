"""The blueprints and apps as they are saved: the workflows of the API form, up to what the table says."""

import json

import pytest
from steer.lab.demo.runner import load_workflow
from steer.lab.docs.blueprint_table import APPS, BLUEPRINTS, CHECKPOINT, inside_of, wires_in
from steer.lab.package import ROOT

INPUT, OUTPUT = -10, -20  # the editor's ids for the two ends of a subgraph


def saved(folder: str, name: str) -> dict:
    return json.loads((ROOT / folder / f"{name}.json").read_text())


@pytest.fixture(params=BLUEPRINTS)
def name(request):
    return request.param


@pytest.fixture
def blueprint(name):
    return saved("subgraphs", name)


def test_every_blueprint_is_there():
    assert {path.stem for path in (ROOT / "subgraphs").glob("*.json")} == set(BLUEPRINTS)


def test_inside_is_the_workflow(name, blueprint):
    """Types, links and values; where an input is exposed, the value is the one it has outside."""
    expected = inside_of(BLUEPRINTS[name])
    assert as_api(blueprint, BLUEPRINTS[name]) == {
        node: {"class_type": entry["class_type"], "inputs": entry["inputs"]} for node, entry in expected.items()
    }


def test_the_workflow_is_the_one_in_api_form(name):
    """But for what is exposed, left out or changed."""
    table, api = BLUEPRINTS[name], load_workflow(BLUEPRINTS[name].workflow)
    exposed = {widget.place for widget in table.widgets.values()}
    inside = inside_of(table)
    assert {node for node, entry in api.items() if entry["class_type"] not in OUTSIDE} == (
        set(inside) | set(table.without)
    ) - (set(table.changes) - set(api))
    for node in set(inside) - set(table.changes):
        assert inside[node]["class_type"] == api[node]["class_type"]
        for key, value in api[node]["inputs"].items():
            assert inside[node]["inputs"][key] == value or (node, key) in exposed


def test_outputs(name, blueprint):
    (inside,) = blueprint["definitions"]["subgraphs"]
    links = {link["id"]: link for link in inside["links"]}
    found = {}
    for slot in inside["outputs"]:
        (link,) = (links[key] for key in slot["linkIds"])
        assert link["target_id"] == OUTPUT
        found[slot["name"]] = (str(link["origin_id"]), link["origin_slot"])
    assert found == BLUEPRINTS[name].outputs


def test_every_input_has_a_tooltip(blueprint):
    (node,) = blueprint["nodes"]
    tooltips = blueprint["definitions"]["subgraphs"][0]["extra"]["steer_tooltips"]
    assert [slot["name"] for slot in node["inputs"]] == list(tooltips)
    assert all(tooltips.values())


@pytest.mark.parametrize("app", APPS)
def test_an_app_is_its_blueprint(app):
    """The same inside, the table's words, and a form whose widgets and result are there."""
    workflow, blueprint = saved("example_workflows", app), saved("subgraphs", APPS[app].blueprint)
    nodes = {node["id"]: node for node in workflow["nodes"]}
    (job,) = [node for node in workflow["nodes"] if node.get("title") == APPS[app].blueprint]
    assert contents(workflow) == contents(blueprint)
    assert job["widgets_values_named"] == blueprint["nodes"][0]["widgets_values_named"] | APPS[app].words
    form = workflow["extra"]["linearData"]
    assert [label for _, label, _ in form["inputs"]] == list(APPS[app].shown)
    assert all(label in nodes[node]["widgets_values_named"] for node, label, _ in form["inputs"])
    assert [nodes[node]["type"] for node in form["outputs"]] == ["SaveImage"]
    (loader,) = [node for node in workflow["nodes"] if node["type"] == "CheckpointLoaderSimple"]
    assert loader["properties"]["models"] == [CHECKPOINT]
    assert loader["widgets_values"] == [CHECKPOINT["name"]]
    assert len(nodes) <= 5 and len(workflow["links"]) <= 6
    assert (ROOT / "example_workflows" / f"{app}.jpg").exists()


OUTSIDE = ("CheckpointLoaderSimple", "LoadImage", "SaveImage")


def contents(workflow: dict) -> list:
    """The nodes and links of a workflow's only subgraph, without ids drawn at random."""
    (inside,) = workflow["definitions"]["subgraphs"]
    return [inside["nodes"], inside["links"], inside["extra"], inside["description"]]


def as_api(blueprint: dict, table) -> dict:
    """The inside of a saved blueprint in API form, wired to the loaders that the workflow has."""
    (host,), (inside,) = blueprint["nodes"], blueprint["definitions"]["subgraphs"]
    links = {link["id"]: link for link in inside["links"]}
    origins = {socket: origin for socket, (origin, _) in wires_in(table).items()}
    nodes = {}
    for node in inside["nodes"]:
        inputs = dict(node.get("widgets_values_named", {}))
        inputs.pop("control_after_generate", None)
        for slot in node["inputs"]:
            if slot["link"] is None:
                continue
            link = links[slot["link"]]
            if link["origin_id"] != INPUT:
                inputs[slot["name"]] = [str(link["origin_id"]), link["origin_slot"]]
                continue
            outside = inside["inputs"][link["origin_slot"]]["name"]
            inputs[slot["name"]] = origins[outside] if outside in origins else host["widgets_values_named"][outside]
        nodes[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return nodes
