"""The help page in the editor's own panel: its picture is there."""

import pytest
from steer.lab.comfy.editor import Editor
from steer.lab.demo.runner import load_workflow

SELECT = """kind => {
    const { canvas, graph } = window.comfyAPI.app.app
    const node = graph.nodes.find(({ type }) => type === kind)
    canvas.deselectAll?.()
    canvas.centerOnNode(node)
    canvas.selectNode(node)
    canvas.setDirty(true, true)
}"""
SHOWN = (
    "[...document.images].some(image => image.src.endsWith('/docs/pictures/KIND.jpg') && image.naturalWidth === 480)"
)


@pytest.fixture(scope="module")
def editor(server):
    with Editor(server.url) as opened:
        yield opened


@pytest.mark.parametrize("kind", ["SteerRePaintSampler", "SteerCFGGuider"])
def test_the_info_button_shows_the_page_with_its_picture(editor, kind):
    editor.load_api(load_workflow("repaint"), "repaint")
    editor.page.evaluate(SELECT, kind)
    editor.page.locator("[data-testid=info-button]").click()
    editor.page.wait_for_function(SHOWN.replace("KIND", kind))
    editor.page.get_by_text("If it goes wrong").wait_for()
