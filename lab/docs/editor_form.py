"""Make the editor form of the templates from their API form, with the host's real editor.

    python -m lab.docs.editor_form [NUMBER ...]

`lab.docs.template_table` says what each template swaps of its API form. This opens the result in the editor of a real
host, lays the nodes out in groups, large enough for both ways of drawing nodes, and saves what the editor saves to
example_workflows/NAME.json, with a note. The thumbnail NAME.jpg is made of what `make demo` left in lab/output.
NUMBER chooses templates by the number in their name, editions too.
"""

import json
import sys
import uuid
from collections.abc import Callable

from PIL import Image, ImageDraw, ImageFont, ImageOps

from ..comfy.editor import Editor
from ..comfy.server import Server
from ..demo.runner import OUTPUT, load_workflow
from ..world import inputs as demo_inputs
from .template_table import SD15, TOY, Template, Thumbnail
from .templates import COMPARE, EXAMPLES, SCALE, models_of, note_of, prompt_of, templates

THUMBNAIL, MARGIN, DARK = 320, 44, "#3c3c44"
WIDTH, TITLE, GAP_X, GAP_Y = 270, 30, 60, 40
BORDER, HEADING = 30, 80  # of a group, at the sides and above
NOTE_WIDTH, LINE, LETTERS = 440, 16, 62  # pixels, of a line too; letters on a line
VIEW = 1700, 770  # pixels of the page that a template is to fit
ROOM = {
    "SteerPromptEdit": 130,
    "SteerPromptToPromptGuider": 300,
    "SteerDDIMInversion": 520,
    "SteerDiffEditMask": 640,
    "SteerNullText": 420,
    "SteerCaptureAttention": 300,
    "SteerAttentionHeatmap": 300,
    "SteerRegionsFromSegmentation": 320,
    "SteerPaintWithWords": 320,
    "SteerLocalBlend": 320,
    "SteerSaveInversion": 130,
    "SteerReconstructLatent": 340,
    "SteerReconstructDecoder": 340,
    "SamplerCustomAdvanced": 300,
    "KSampler": 300,
    "SteerFitLoRA": 400,
    "LossGraphNode": 260,
}
"""Kept free below nodes that grow when they run, by a preview, a picture or a report."""
SIZES = {
    "CLIPTextEncode": (320, 120),
    "SteerPromptEdit": (340, 0),
    "SteerCFGGuider": (310, 0),
    "LoadImage": (300, 340),
    "SaveImage": (300, 340),
    "Painter": (420, 640),
    COMPARE: (420, 440),
}
STAGES = {
    "1 Load": ("#3f789e", {
        "CheckpointLoaderSimple", "UNETLoader", "VAELoader", "LoraLoader", "LoadImage", "Painter", "CLIPLoader",
        "CLIPVisionLoader", "ControlNetLoader", "SteerClassifierLoader", "SteerLoadInversion", SCALE,
        "LoadImageTextDataSetFromFolder", "LoadDA3Model",
    }),
    "2 Describe": ("#88AA88", {
        "CLIPTextEncode", "SteerPromptEdit", "SteerLocalBlend", "SteerRegionsFromSegmentation", "SteerPaintWithWords",
        "EmptyLatentImage", "EmptyHunyuanLatentVideo", "SolidMask", "MaskComposite", "ThresholdMask",
        "ImagePadForOutpaint", "SteerPadImage", "StringReplace",
        "SteerCLIPTextLoss", "SteerCLIPImageLoss", "SteerClassifierLoss", "SteerMeasurementLoss", "SteerGrayOperator",
        "SteerResizeOperator", "SteerBlurOperator", "SteerCropOperator", "SteerJPEGOperator", "ImageScale", "ImageCrop",
    }),
    "3 Steer": ("#a1309b", set()),  # all others
    "4 Result": ("#b58b2a", {
        "VAEDecode", "ImageFromBatch", "SaveImage", "SaveAnimatedWEBP", COMPARE, "SteerStitch", "SteerPoissonBlend",
        "SteerReconstructLatent", "SteerReconstructDecoder", "SteerAttentionHeatmap", "MaskToImage",
        "SteerSaveInversion", "SaveLoRA",
    }),
}  # fmt: skip
PLAIN = {"Checkpoint", "Encode", "Decode", "Sample", "Sampler", "Schedule", "Noise", "Noise mask", "Size", "Guider"}
"""Titles of the API form that say no more than the node's own name."""


def main(numbers: list[str]) -> None:
    """Write editor form and thumbnail of these templates, or of all."""
    chosen = [each for each in templates() if not numbers or each.name.split()[1] in numbers]
    with Server() as server, Editor(server.url) as editor:
        names = {kind: about["display_name"] or kind for kind, about in server.object_info().items()}
        heights = new_heights(editor, {each["class_type"]: each for one in chosen for each in prompt_of(one).values()})
        for template in chosen:
            write_editor_form(editor, template, titled(template, names), heights)
            write_thumbnail(template)
            print(EXAMPLES / f"{template.name}.json")


def titled(template: Template, names: dict[str, str]) -> dict:
    """The template's prompt, each node with its own name for a title, and behind it what it is for here."""
    original = load_workflow(template.api)
    prompt = prompt_of(template)
    for node, entry in prompt.items():
        name = names[entry["class_type"]]
        said = template.titles.get(node) or original.get(node, {}).get("_meta", {}).get("title", "")
        plain = not said or said in PLAIN or said.startswith(name) or "(Steer)" in said
        entry["_meta"]["title"] = name if plain else f"{name}: {_begun(said)}"
    return prompt


def new_heights(editor: Editor, examples: dict[str, dict]) -> dict[str, float]:
    """By class of node, the least height in Nodes 2.0, without the title; `examples` has a node of each class."""
    graph = {str(number): {**entry, "inputs": _values(entry)} for number, entry in enumerate(examples.values(), 1)}
    editor.new_nodes(True)
    editor.load_api(graph, "measured")
    editor.boxes()  # once they are there
    editor.place([(node, 0, 60 * int(node), _least_size(entry["class_type"])[0], 10) for node, entry in graph.items()])
    heights = {graph[node]["class_type"]: box[3] - TITLE for node, box in editor.boxes().items()}
    editor.new_nodes(False)
    return heights


def write_editor_form(editor: Editor, template: Template, prompt: dict, heights: dict[str, float]) -> None:
    """Lay one template out and save it as the editor does, with its note, its groups and where its models are."""
    editor.load_api(prompt, template.name)
    least = {node["id"]: node["size"] for node in editor.nodes()}
    sizes = {node: _size(entry["class_type"], heights, least[node]) for node, entry in prompt.items()}
    places, groups = layout(prompt, sizes)
    editor.place([(node, *place, *sizes[node]) for node, place in places.items()])
    workflow = editor.workflow()
    for node in workflow["nodes"]:
        if models := models_of(prompt[str(node["id"])]):
            node["properties"]["models"] = models
        if node["type"] == COMPARE:
            node["properties"]["steer_optional"] = True  # see web/templates.js
    workflow["groups"] = groups
    _add_note(workflow, note_of(template))
    workflow["id"] = str(uuid.uuid5(uuid.NAMESPACE_URL, f"steer/{template.name}"))
    right, bottom = (max(box["bounding"][side] + box["bounding"][side + 2] for box in groups) for side in (0, 1))
    scale = round(min(0.7, VIEW[0] / (right + NOTE_WIDTH + 2 * GAP_X), VIEW[1] / (bottom + HEADING)), 2)
    workflow["extra"]["ds"] = {"scale": scale, "offset": [NOTE_WIDTH + GAP_X + 90 / scale, HEADING + 110 / scale]}
    (EXAMPLES / f"{template.name}.json").write_text(json.dumps(workflow, indent=1) + "\n")


def layout(prompt: dict, sizes: dict) -> tuple[dict[str, tuple[float, float]], list[dict]]:
    """The upper left corner of each node, and the groups that hold them: what goes in at the left, the rest beside."""
    sizes = {node: (width, height + ROOM.get(prompt[node]["class_type"], 0)) for node, (width, height) in sizes.items()}
    inside = {title: {} for title in STAGES}
    for node, entry in prompt.items():
        inside[_stage(entry["class_type"])][node] = entry
    places, groups, left = {}, [], 0.0
    for first, second in (("1 Load", "2 Describe"), ("3 Steer", "4 Result")):
        top, right = 0.0, left
        for title in filter(inside.get, (first, second)):
            found = positions(title, inside[title], sizes)
            places |= {node: (left + BORDER + x, top + y) for node, (x, y) in found.items()}
            width = max(x + sizes[node][0] for node, (x, y) in found.items()) + 2 * BORDER
            height = max(y + sizes[node][1] for node, (x, y) in found.items()) + HEADING + BORDER
            groups.append(_group(len(groups) + 1, title, [left, top - HEADING, width, height]))
            top, right = top + height + GAP_Y, max(right, left + width)
        left = right + GAP_X
    return places, groups


def positions(title: str, prompt: dict, sizes: dict) -> dict[str, tuple[float, float]]:
    """The upper left corner of each node of a stage: what is first comes first, in columns or in one."""
    columns = _columns(prompt)[::-1]
    if title in ("1 Load", "2 Describe"):
        columns = [sum(columns, [])]
    elif title == "4 Result":  # what is looked at stands side by side
        last = columns.pop()
        step = 1 if len(last) < 5 else 2
        columns += [last[at : at + step] for at in range(0, len(last), step)]
    places, left = {}, 0.0
    for column in columns:
        top = 0.0
        for node in column:
            places[node] = (left, top)
            top += sizes[node][1] + TITLE + GAP_Y
        left += max(sizes[node][0] for node in column) + GAP_X
    return places


def consumers(prompt: dict, node: str) -> list[str]:
    """The nodes that an output of `node` goes into."""
    return [
        other
        for other, entry in prompt.items()
        if any(isinstance(value, list) and value[0] == node for value in entry["inputs"].values())
    ]


def write_thumbnail(template: Template) -> None:
    """Before and after side by side in a square, and under them the words that changed."""
    said: Thumbnail = template.thumbnail
    half = THUMBNAIL // 2
    square = Image.new("RGB", (THUMBNAIL, THUMBNAIL), DARK)
    shown = [name for name in (said.before, said.after) if name]
    width = THUMBNAIL // len(shown) - 4
    for number, name in enumerate(shown):
        picture = _picture(name).convert("RGB")
        padded = ImageOps.pad(picture, (width, half), Image.Resampling.LANCZOS, color=DARK)
        square.paste(padded, (2 + number * (width + 4), MARGIN))
    draw = ImageDraw.Draw(square)
    draw.text((half, half + 76), said.words, "white", ImageFont.load_default(28), "mm")
    if template.family not in (SD15, TOY):  # the list cuts the end of a name off
        draw.text((half, half + 124), template.family.name, "#ffd166", ImageFont.load_default(28), "mm")
    square.save(EXAMPLES / f"{template.name}.jpg", quality=88)


def _picture(name: str) -> Image.Image:
    drawn: Callable | None = getattr(demo_inputs, name, None)
    picture = drawn() if drawn else Image.open(OUTPUT / f"{name}.png")
    return picture[-1] if isinstance(picture, list) else picture  # of a clip the last frame


def _add_note(workflow: dict, text: str) -> None:
    """A note at the left of the groups."""
    lines = sum(-(-max(1, len(line)) // LETTERS) for line in text.split("\n"))
    number = workflow["last_node_id"] = workflow["last_node_id"] + 1
    workflow["nodes"].append({
        "id": number, "type": "MarkdownNote", "pos": [-NOTE_WIDTH - GAP_X, -HEADING + TITLE],
        "size": [NOTE_WIDTH, 60 + lines * LINE], "flags": {}, "order": 0, "mode": 0, "inputs": [], "outputs": [],
        "title": "Read me", "properties": {}, "widgets_values": [text], "color": "#432", "bgcolor": "#000",
    })  # fmt: skip


def _stage(kind: str) -> str:
    return next((title for title, (_, kinds) in STAGES.items() if kind in kinds), "3 Steer")


def _columns(prompt: dict) -> list[list[str]]:
    """Nodes by their longest way to the end of the graph, the end first."""

    def distance(node: str) -> int:
        return 1 + max((distance(other) for other in consumers(prompt, node)), default=-1)

    distances = {node: distance(node) for node in prompt}
    return [[node for node in prompt if distances[node] == step] for step in range(max(distances.values()) + 1)]


def _group(number: int, title: str, bounding: list[float]) -> dict:
    color, _ = STAGES[title]
    return {"id": number, "title": title, "bounding": bounding, "color": color, "font_size": 24, "flags": {}}


def _values(entry: dict) -> dict:
    """The inputs of a node that are no wires."""
    return {name: value for name, value in entry["inputs"].items() if not isinstance(value, list)}


def _size(kind: str, heights: dict[str, float], least: list[float]) -> tuple[float, ...]:
    return tuple(map(max, _least_size(kind), (0, round(heights[kind]) + 1), map(round, least)))


def _least_size(kind: str) -> tuple[float, float]:
    return SIZES.get(kind, (WIDTH, 0))


def _begun(title: str) -> str:
    """The title as it goes on behind a colon."""
    return title if title[:2].isupper() else title[0].lower() + title[1:]


if __name__ == "__main__":
    main(sys.argv[1:])
