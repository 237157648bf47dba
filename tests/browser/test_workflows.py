"""The templates in the host's real editor: they open whole, queue their API form, and stay tidy after a run."""

import pytest
from steer.lab.comfy.editor import Editor
from steer.lab.demo.runner import PIXEL_INPUTS, lacking, load_workflow
from steer.lab.docs.template_table import MODELS, TOY
from steer.lab.docs.templates import COMPARE, SCALE, is_front, models_of, prompt_of, saved, templates, undone
from steer.tests.cases import some
from steer.tests.test_templates import bare, overlaps

ALL = {each.name: each for each in templates()}
FRONT = [name for name, each in ALL.items() if is_front(each)]
SHORT = {"steps": 4, "resamples": 2, "jump_length": 2, "samples": 2, "refine": 1, "cutouts": 2}
FILES = "ckpt_name", "clip_name"
LACKING = "type => delete LiteGraph.registered_node_types[type]"


@pytest.fixture(scope="module")
def kinds(server):
    """What the host says of its nodes, by class."""
    return server.object_info()


@pytest.fixture(scope="module")
def editor(server):
    server.run(load_workflow("inversion_file_save"))  # the template that uses the file lists what this leaves
    with Editor(server.url) as opened:
        yield opened


@pytest.fixture(scope="module", params=some(ALL, *list(ALL)[::6]))
def opened(request, editor, kinds):
    """The template, with it open in the editor."""
    template = ALL[request.param]
    _skip_where_nodes_are_missing(template, kinds)
    editor.load(saved(template), template.name)
    return template


def _skip_where_nodes_are_missing(template, kinds):
    if unknown := lacking(load_workflow(template.api), kinds):
        pytest.skip(f"needs {', '.join(unknown)}")
    if "Painter" in template.classes.values() and "Painter" not in kinds:
        pytest.skip("this ComfyUI has no Painter; the template from a colour map is for it")


def test_nothing_is_red_but_a_model_on_offer(opened, editor):
    """No missing type or picture, and no value that its list lacks but models with an address."""
    offered = {model["name"] for entry in prompt_of(opened).values() for model in models_of(entry)}
    nodes = {node["id"]: node for node in saved(opened)["nodes"]}
    for found in editor.nodes():
        assert not found["missing"]
        names = {str(value) for value in nodes[int(found["id"])].get("widgets_values") or []}
        assert not found["refused"] or names & offered
    missing = {}
    for _ in range(30):  # it looks for them after the graph has opened
        missing = {model["name"]: model for model in editor.missing_models()}
        if set(missing) == offered:
            break
        editor.page.wait_for_timeout(100)
    assert set(missing) == offered
    for name, model in missing.items():
        assert model["directory"] == MODELS[name][1] and model["url"].endswith(MODELS[name][0])


def test_queues_the_api_form(opened, editor):
    prompt = editor.prompt()
    expected = bare(prompt_of(opened))
    assert {node: entry for node, entry in bare(prompt).items() if entry["class_type"] not in (COMPARE, SCALE)} == {
        node: entry for node, entry in expected.items() if entry["class_type"] not in (COMPARE, SCALE)
    }
    assert undone(prompt, opened) == bare(load_workflow(opened.api))


def test_titles_are_the_nodes_own_names_first(opened, editor, kinds):
    """Of this package's nodes; what the host calls its own changes with its releases."""
    for entry in editor.prompt().values():
        if entry["class_type"].startswith("Steer"):
            assert entry["_meta"]["title"].startswith(kinds[entry["class_type"]]["display_name"])


@pytest.mark.parametrize("new_nodes", [False, True], ids=["on the canvas", "Nodes 2.0"])
@pytest.mark.parametrize("name", some(FRONT, FRONT[0], FRONT[7]))
def test_nodes_do_not_overlap_before_and_after_a_run(editor, kinds, name, new_nodes):
    template = ALL[name]
    _skip_where_nodes_are_missing(template, kinds)
    editor.new_nodes(new_nodes)
    try:
        editor.load(saved(template), name)
        assert overlaps(list(editor.boxes().values())) == []
        editor.set(_short_and_on_the_toy(template))
        assert editor.run() == "execution_success"
        editor.page.wait_for_timeout(500)  # what a node shows of its run comes after the run's end
        assert overlaps(list(editor.boxes().values())) == []
    finally:
        editor.new_nodes(False)


def _short_and_on_the_toy(template):
    """Values for the shapes checkpoint, its sizes, and fewer steps."""
    original, values = load_workflow(template.api), {}
    for node, entry in prompt_of(template).items():
        short = {name: SHORT[name] for name in entry["inputs"] if name in SHORT}
        if entry["class_type"] == SCALE:
            short["megapixels"] = (TOY.size / 1024) ** 2
        if node in original and node not in template.classes:
            names = (*PIXEL_INPUTS.get(entry["class_type"], ()), *FILES)
            inputs = original[node]["inputs"]
            short |= {name: inputs[name] for name in names if name in inputs}
        values[node] = short
    return values


def test_a_host_without_the_comparison_does_without(editor):
    """What older ComfyUIs do: the node is left out, and nothing is missing."""
    template = ALL[FRONT[0]]
    editor.page.evaluate(LACKING, COMPARE)
    try:
        editor.load(saved(template), template.name)
        assert not [node for node in editor.nodes() if node["missing"]]
        prompt = editor.prompt()
        assert COMPARE not in {entry["class_type"] for entry in prompt.values()}
        assert undone(prompt, template) == bare(load_workflow(template.api))
    finally:
        editor.page.reload()
        editor.page.wait_for_function("() => window.comfyAPI?.app?.app?.graph?.nodes?.length")


def test_the_template_browser_lists_them_by_number(editor):
    editor.page.evaluate("() => window.comfyAPI.app.app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    dialog = editor.page.get_by_role("dialog").last
    dialog.get_by_text("steer-diffusion-checkout").first.click()
    dialog.get_by_text("Steer 01 - Edit a photo by words").first.wait_for()
    shown = [text.split(" - ")[0] for text in dialog.get_by_text("Steer ").all_inner_texts() if " - " in text]
    assert len(shown) > 3 and shown == sorted(shown)
    editor.page.keyboard.press("Escape")
