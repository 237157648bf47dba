"""The host's real graph editor in headless Chromium, for the workflow tool and the browser tests."""

import json
import shutil
import urllib.request
from contextlib import ExitStack

from playwright.sync_api import sync_playwright

ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-dev-shm-usage"]
SETTINGS = {"Comfy.TutorialCompleted": True, "Comfy.Workflow.ShowMissingModelsWarning": False}
READY = "() => window.comfyAPI?.app?.app?.graph?.nodes?.length"  # it opens with a graph of its own
LOAD = """async ([workflow, name]) => {
    await window.comfyAPI.app.app.loadGraphData(workflow, true, true, name)
}"""
LOAD_API = "async ([prompt, name]) => { await window.comfyAPI.app.app.loadApiJson(prompt, name) }"
PROMPT = "async () => (await window.comfyAPI.app.app.graphToPrompt()).output"
SERIALIZE = "() => JSON.parse(JSON.stringify(window.comfyAPI.app.app.graph.serialize()))"
NODES = """() => window.comfyAPI.app.app.graph.nodes.map(node => ({
    id: String(node.id), size: [...node.computeSize()],
    missing: !(node.type in LiteGraph.registered_node_types), marked: Boolean(node.has_errors),
    refused: (node.widgets ?? []).filter(({options, value}) => Array.isArray(options?.values)
        && !options.values.includes(value)).map(({name}) => name),
}))"""
NEW_NODES = "on => window.comfyAPI.app.app.ui.settings.setSettingValueAsync('Comfy.VueNodes.Enabled', on)"
DRAWN = """async () => {
    const { graph, canvas } = window.comfyAPI.app.app, { scale, offset } = canvas.ds
    const page = canvas.canvas.getBoundingClientRect()
    const drawn = () => Object.fromEntries(graph.nodes.map(node => {
        const element = document.querySelector(`[data-node-id="${node.id}"]`)
        if (!element) return [String(node.id), [node.pos[0], node.pos[1] - 30, node.size[0], node.size[1] + 30]]
        const { left, top, width, height } = element.getBoundingClientRect()
        return [String(node.id), [(left - page.left) / scale - offset[0], (top - page.top) / scale - offset[1],
            width / scale, height / scale]]
    }))
    for (let before = '', times = 0; times < 3;) {
        await new Promise(resolve => setTimeout(resolve, 150))
        const now = JSON.stringify(drawn())
        times = now === before ? times + 1 : 0
        before = now
    }
    return drawn()
}"""
MISSING = """() => {
    const stores = document.querySelector('#vue-app').__vue_app__.config.globalProperties.$pinia._s
    const found = stores.get('missingModel')?.missingModelCandidates ?? []
    return found.map(({ name, url, directory }) => ({ name, url, directory }))
}"""
SET = """values => {
    for (const node of window.comfyAPI.app.app.graph.nodes)
        for (const widget of node.widgets ?? []) widget.value = values[String(node.id)]?.[widget.name] ?? widget.value
}"""
OPEN_SEARCH = "() => window.comfyAPI.app.app.extensionManager.command.execute('Workspace.SearchBox.Toggle')"
RESULT = "[data-testid=result-item]"  # of the search for nodes
FIRST_NAMES = "rows => rows.map(row => row.querySelector('span.truncate').innerText)"
# a node that hangs at the mouse until it is put down
HELD = "() => window.comfyAPI.app.app.graph.nodes.some(({ flags }) => flags.ghost)"
RUN = """async () => {
    const ended = new Promise(resolve => {
        for (const kind of ['execution_success', 'execution_error', 'execution_interrupted'])
            window.comfyAPI.api.api.addEventListener(kind, () => resolve(kind), { once: true })
    })
    await window.comfyAPI.app.app.queuePrompt(0)
    return await ended
}"""
REPORTS = """() => Object.fromEntries(window.comfyAPI.app.app.graph.nodes.flatMap(node => {
    const report = node.widgets?.find(({ name }) => name === 'steer_report')
    return report ? [[String(node.id), report.element.innerText]] : []
}))"""
PLACE = """places => {
    const graph = window.comfyAPI.app.app.graph
    for (const [id, x, y, width, height] of places) {
        const node = graph.getNodeById(id)
        node.pos = [x, y]
        node.size = [width, height]
        for (const widget of node.widgets ?? [])
            if (widget.name === 'control_after_generate') widget.value = 'fixed'
    }
    graph.setDirtyCanvas(true, true)
}"""


class Editor:
    """One page of the editor at `url`, as a context manager."""

    def __init__(self, url: str):
        self.url = url

    def __enter__(self) -> "Editor":
        with ExitStack() as stack:
            _set(self.url, SETTINGS)
            browsers = stack.enter_context(sync_playwright())
            browser = browsers.chromium.launch(executable_path=shutil.which("chromium"), args=ARGUMENTS)
            stack.callback(browser.close)
            self.page = browser.new_page(viewport={"width": 1900, "height": 900})
            self.page.goto(self.url, timeout=60_000)
            self.page.wait_for_function(READY, timeout=60_000)
            self.page.wait_for_load_state("networkidle")
            self._cleanup = stack.pop_all()
        return self

    def __exit__(self, *exception) -> None:
        self._cleanup.close()

    def load(self, workflow: dict, name: str) -> None:
        """Open a workflow in editor form."""
        self.page.evaluate(LOAD, [workflow, name])

    def load_api(self, prompt: dict, name: str) -> None:
        """Open a prompt in API form."""
        self.page.evaluate(LOAD_API, [prompt, name])

    def prompt(self) -> dict:
        """The open graph in API form, as the editor would queue it."""
        return self.page.evaluate(PROMPT)

    def workflow(self) -> dict:
        """The open graph in editor form, as the editor would save it."""
        return self.page.evaluate(SERIALIZE)

    def nodes(self) -> list[dict]:
        """For each node of the open graph: `id`, the least `size`, and what the editor has against it.

        That is: `missing` its type, `marked` red, `refused` values (names of inputs whose choices lack the value).
        """
        return self.page.evaluate(NODES)

    def missing_models(self) -> list[dict]:
        """The models that the editor misses in the open graph: `name`, and where it offers each, `url`, `directory`."""
        return self.page.evaluate(MISSING)

    def set(self, values: dict[str, dict]) -> None:
        """Set widgets of the open graph: by node id, values by input name."""
        self.page.evaluate(SET, values)

    def run(self) -> str:
        """Queue the open graph and wait; how it ended, in the host's word (`execution_success`)."""
        return self.page.evaluate(RUN)

    def reports(self) -> dict[str, str]:
        """The text that is drawn in nodes of the open graph, by node id."""
        return self.page.evaluate(REPORTS)

    def search(self, words: str) -> list[str]:
        """The display names that the search for a node lists for these words, the first one first."""
        self._type_into_search(words)
        names, before = [], None
        for _ in range(20):  # it lists some time after typing has stopped
            self.page.wait_for_timeout(500)
            names, before = self.page.locator(RESULT).evaluate_all(FIRST_NAMES), names
            if names and names == before:
                break
        self.page.keyboard.press("Escape")
        self.page.locator(RESULT).first.wait_for(state="hidden")
        return names

    def add(self, words: str, *texts: str) -> None:
        """Search for these words, and put the first result that says all of `texts` on the canvas, near the middle."""
        self._type_into_search(words)
        results = self.page.locator(RESULT)
        for text in texts:
            results = results.filter(has_text=text)
        results.first.click()
        self.page.wait_for_function(HELD)
        size = self.page.viewport_size
        while self.page.evaluate(HELD):  # the closing search may be in the way
            self.page.mouse.move(size["width"] / 2, size["height"] / 3)
            self.page.mouse.click(size["width"] / 2, size["height"] / 3)
            self.page.wait_for_timeout(100)

    def _type_into_search(self, words: str) -> None:
        self.page.evaluate(OPEN_SEARCH)
        self.page.keyboard.type(words)

    def new_nodes(self, on: bool) -> None:
        """Switch between the two ways of drawing nodes: on the canvas, or Nodes 2.0."""
        self.page.evaluate(NEW_NODES, on)

    def boxes(self) -> dict[str, list[float]]:
        """What each node of the open graph takes up as it is drawn, title included: left, top, width, height."""
        return self.page.evaluate(DRAWN)

    def place(self, places: list[tuple]) -> None:
        """Move and size nodes, (id, x, y, width, height) each; their seeds stay fixed, so a run can be repeated."""
        self.page.evaluate(PLACE, places)


def _set(url: str, settings: dict) -> None:
    request = urllib.request.Request(
        f"{url}/settings", json.dumps(settings).encode(), {"Content-Type": "application/json"}
    )
    urllib.request.urlopen(request, timeout=30).close()
