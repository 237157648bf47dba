"""Make the editor form of the example workflows from their API form, with the host's real editor.

    python -m demo.editor_form [NAME ...]

The API form in example_workflows/api/ is what is written by hand. This opens it in the editor of a real host, lays
the nodes out in columns, and saves what the editor saves to example_workflows/NAME.json. The thumbnail NAME.jpg is
the first picture of that workflow that `python -m demo` left in demo/output.
"""

import json
import sys
import uuid

from PIL import Image, ImageOps

from .editor import Editor
from .inputs import write_inputs
from .package import ROOT
from .runner import OUTPUT, SHAPES_SIZE, load_workflow, workflow_names
from .server import Server

EXAMPLES = ROOT / "example_workflows"
THUMBNAIL = 320
WIDTH, TITLE, GAP_X, GAP_Y = 250, 30, 90, 30
ROOM = dict.fromkeys(
    ("SteerDDIMInversion", "SteerDiffEditMask", "SteerNullText", "SteerCaptureAttention", "SamplerCustomAdvanced"), 260
)
"""Kept free below nodes that grow when they run, by a preview or a report."""
SIZES = {"CLIPTextEncode": (300, 110), "LoadImage": (300, 340), "SaveImage": (300, 340)}


def main(names: list[str]) -> None:
    """Write editor form and thumbnail of these workflows, or of all."""
    with Server() as server:
        write_inputs(server.input_folder, SHAPES_SIZE)
        with Editor(server.url) as editor:
            for name in names or workflow_names():
                write_editor_form(editor, name)
                write_thumbnail(name)
                print(EXAMPLES / f"{name}.json")


def write_editor_form(editor: Editor, name: str) -> None:
    """Lay one workflow out and save it as the editor does."""
    prompt = load_workflow(name)
    editor.load_api(prompt, name)
    least = {node["id"]: node["size"] for node in editor.nodes()}
    sizes = {node: _size(entry["class_type"], least[node]) for node, entry in prompt.items()}
    editor.place([(node, *place, *sizes[node]) for node, place in positions(prompt, sizes).items()])
    workflow = editor.workflow()
    workflow["id"] = str(uuid.uuid5(uuid.NAMESPACE_URL, f"steer/{name}"))
    workflow["extra"]["ds"] = {"scale": 0.7, "offset": [60, 160]}
    (EXAMPLES / f"{name}.json").write_text(json.dumps(workflow, indent=1) + "\n")


def write_thumbnail(name: str) -> None:
    """The workflow's first picture in demo/output as the template browser's thumbnail."""
    with Image.open(OUTPUT / f"{name}_1.png") as picture:
        shown = ImageOps.pad(picture.convert("RGB"), (THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS, "white")
    shown.save(EXAMPLES / f"{name}.jpg", quality=90)


def positions(prompt: dict, sizes: dict) -> dict[str, tuple[float, float]]:
    """The upper left corner of each node: columns by distance to the end, each node beside what it feeds."""
    columns = _columns(prompt)
    places, right = {}, 0.0
    for column in columns:
        left = right - max(sizes[node][0] for node in column)
        wanted = {node: _beside(consumers(prompt, node), places) for node in column}
        free = 0.0
        for node in sorted(column, key=lambda node: (wanted[node], int(node))):
            top = max(wanted[node], free)
            places[node] = (left, top)
            free = top + sizes[node][1] + ROOM.get(prompt[node]["class_type"], 0) + TITLE + GAP_Y
        right = left - GAP_X
    return {node: (left - right, top) for node, (left, top) in places.items()}


def consumers(prompt: dict, node: str) -> list[str]:
    """The nodes that an output of `node` goes into."""
    return [
        other
        for other, entry in prompt.items()
        if any(isinstance(value, list) and value[0] == node for value in entry["inputs"].values())
    ]


def _columns(prompt: dict) -> list[list[str]]:
    """Nodes by their longest way to the end of the graph, the end first."""

    def distance(node: str) -> int:
        return 1 + max((distance(other) for other in consumers(prompt, node)), default=-1)

    distances = {node: distance(node) for node in prompt}
    return [[node for node in prompt if distances[node] == step] for step in range(max(distances.values()) + 1)]


def _beside(fed: list[str], places: dict) -> float:
    return min((places[node][1] for node in fed), default=0.0)


def _size(kind: str, least: list[float]) -> tuple[float, float]:
    width, height = SIZES.get(kind, (WIDTH, 0))
    return max(width, round(least[0])), max(height, round(least[1]))


if __name__ == "__main__":
    main(sys.argv[1:])
