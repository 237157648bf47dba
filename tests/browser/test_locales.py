"""The editor shows nodes in the user's language, from `locales/`."""

import pytest
from steer.lab.comfy.editor import Editor
from steer.lab.docs.locales import LANGUAGES, read

LANGUAGE = "language => window.comfyAPI.app.app.ui.settings.setSettingValueAsync('Comfy.Locale', language)"
NODE = """() => {
    const { title, inputs, outputs, widgets, constructor } = LiteGraph.createNode('SteerDDIMInversion')
    const names = slots => slots.map(({ name, label, localized_name }) => localized_name ?? label ?? name)
    return {
        title, outputs: names(outputs), widgets: widgets.map(({ label }) => label),
        inputs: names(inputs.filter(({ widget }) => !widget)), description: constructor.nodeData.description,
    }
}"""


@pytest.fixture(scope="module")
def editor(server):
    with Editor(server.url) as opened:
        yield opened
        opened.page.evaluate(LANGUAGE, "en")


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_node_in_the_users_language(editor, language):
    texts = read(language, "nodeDefs.json")["SteerDDIMInversion"]
    labels = {name: text["name"] for name, text in texts["inputs"].items()}
    editor.page.evaluate(LANGUAGE, language)
    editor.page.reload()
    editor.page.wait_for_function("() => 'SteerDDIMInversion' in (window.LiteGraph?.registered_node_types ?? {})")
    node = editor.page.evaluate(NODE)
    assert (node["title"], node["description"]) == (texts["display_name"], texts["description"])
    assert node["inputs"] == [labels[name] for name in ("guider", "sigmas", "latent_image")]
    assert node["widgets"] == [labels[name] for name in ("refine", "tolerance", "check")]
    assert node["outputs"][2] == texts["outputs"]["2"]["name"]
