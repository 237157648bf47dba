"""What the blueprints and apps are: the table that `make docs ARGS=blueprints` makes them from.

A blueprint is a workflow without its loaders and savers, as one node of the host's editor. What is inside is the API
form in example_workflows/api; which of its inputs are outside, with what name, value and tooltip, stands here.
"""

from copy import deepcopy
from typing import NamedTuple

from ..demo.runner import load_workflow

SOCKETS = {"CheckpointLoaderSimple": ("model", "clip", "vae"), "LoadImage": ("image", "mask")}
"""What stays outside, and what its outputs are called at the blueprint."""
SAVER = "SaveImage"

Place = tuple[str, str]  # node id and input in the API form


class Widget(NamedTuple):
    """An input with a value: what it is inside, the value it starts with, and its tooltip (None: the node's own)."""

    place: Place
    value: str | int | float
    tooltip: str | None = None


class Blueprint(NamedTuple):
    """One table entry. `outputs`: (node id, output) by name; `without`: nodes of the API form that are left out.

    `changes`: by node id, what the inside has otherwise than the API form.
    """

    workflow: str
    description: str
    sockets: dict[str, str]
    widgets: dict[str, Widget]
    outputs: dict[str, tuple[str, int]]
    without: tuple[str, ...] = ()
    changes: dict[str, dict] = {}


MODEL = "The model of a checkpoint."
SOCKET_TIPS = {"model": MODEL, "clip": "The checkpoint's text encoder.", "vae": "The checkpoint's VAE."}
NEGATIVE = "What the picture should not show. May stay empty."
CFG = "How strictly the words are followed. 1 is off; 5 to 9 is usual."
STEPS = "More steps take longer and are a little finer."
SEED = "Of the noise: another number gives another picture."
LANGEVIN = "{} For any checkpoint. It moves the new until it fits the old: several times as long."

BLUEPRINTS = {
    "Edit a Picture by Words (Steer)": Blueprint(
        "prompt_to_prompt_inversion",
        "Changes what the words say and keeps the rest of the picture (Prompt-to-Prompt). The source says what the "
        "picture shows, the target says the same with a word changed. Returns the edit, and the picture as it came "
        "back, to compare. For SD1.x, SD2.x and SDXL.",
        {"image": "The picture to edit. SD1.5 wants about 512 x 512."},
        {
            "source": Widget(("2", "source"), "a photo of a cat", "What the picture shows, in a sentence."),
            "target": Widget(("2", "target"), "a photo of a tiger", "The same sentence with a word changed or added."),
            "word weights": Widget(("2", "equalizer"), ""),
            "cross_end": Widget(("9", "cross_end"), 0.8),
            "self_end": Widget(("9", "self_end"), 0.4),
            "cfg": Widget(("9", "cfg"), 7.5, CFG),
            "steps": Widget(("7", "steps"), 50, f"{STEPS} The picture is inverted in as many."),
            "sampler": Widget(("10", "sampler_name"), "euler", "How each step is taken. `euler` is DDIM."),
        },
        {"edit": ("13", 0), "source": ("14", 0)},
    ),
    "Edit on Any Model (Steer)": Blueprint(
        "direct_edit",
        "Changes what the words say of a picture without turning it back into noise first (Direct Edit). The source "
        "says what the picture shows, the target says the same with a word changed. For any checkpoint. On Flux set "
        "target cfg to 1, strength to 0.86 and the scheduler to simple.",
        {"image": "The picture to edit, of a size that the model draws well: about 512 x 512 for SD1.5."},
        {
            "source": Widget(("2", "text"), "a photo of a cat", "What the picture shows, in a sentence."),
            "target": Widget(("3", "text"), "a photo of a tiger", "The same sentence with a word changed."),
            "negative": Widget(("4", "text"), "", NEGATIVE),
            "strength": Widget(("9", "strength"), 0.66, "How much may change: 0.5 keeps much, 0.8 frees the form."),
            "source cfg": Widget(("7", "source_cfg"), 1.0),
            "target cfg": Widget(("7", "target_cfg"), 5.0),
            "steps": Widget(("9", "steps"), 25, STEPS),
            "scheduler": Widget(("9", "scheduler"), "normal", "`simple` for Flux, SD3, Qwen-Image and their like."),
            "seed": Widget(("10", "noise_seed"), 0, SEED),
        },
        {"image": ("12", 0)},
        changes={
            "7": {"inputs": {"source": ["14", 0], "target": ["15", 0]}},
            "14": {"class_type": "FluxGuidance", "inputs": {"conditioning": ["2", 0], "guidance": 1.5}},
            "15": {"class_type": "FluxGuidance", "inputs": {"conditioning": ["3", 0], "guidance": 5.5}},
        },  # FlowEdit's numbers for Flux; other models do not look at them
    ),
    "Inpaint (Steer)": Blueprint(
        "langevin",
        LANGEVIN.format("Fills a hole in a picture with what the prompt says (Langevin)."),
        {"image": "The picture.", "mask": "The hole: white is filled, the rest stays."},
        {
            "prompt": Widget(("2", "text"), "a photo of a cat", "The whole picture in words, the hole filled."),
            "negative": Widget(("3", "text"), "", NEGATIVE),
            "cfg": Widget(("4", "cfg"), 7.5, CFG),
            "steps": Widget(("9", "steps"), 28, STEPS),
            "inner": Widget(("8", "inner"), 5),
            "momentum": Widget(("8", "momentum"), 0.8),
            "seed": Widget(("10", "noise_seed"), 0, SEED),
        },
        {"image": ("12", 0)},
    ),
    "Outpaint (Steer)": Blueprint(
        "outpainting",
        LANGEVIN.format("Makes a picture larger and fills what is new (Langevin)."),
        {"image": "The picture to make larger."},
        {
            "prompt": Widget(("2", "text"), "a photo of a cat", "The whole picture in words, with what is new."),
            "negative": Widget(("3", "text"), "", NEGATIVE),
            "left": Widget(("6", "left"), 0, "How much to add on the left, in pixels."),
            "top": Widget(("6", "top"), 0, "How much to add at the top, in pixels."),
            "right": Widget(("6", "right"), 128, "How much to add on the right, in pixels."),
            "bottom": Widget(("6", "bottom"), 0, "How much to add at the bottom, in pixels."),
            "cfg": Widget(("4", "cfg"), 7.5, CFG),
            "steps": Widget(("10", "steps"), 28, STEPS),
            "inner": Widget(("9", "inner"), 5),
            "seed": Widget(("11", "noise_seed"), 0, SEED),
        },
        {"image": ("13", 0)},
    ),
    "Find and Replace (Steer)": Blueprint(
        "diffedit",
        "Finds by itself where two sentences disagree about a picture, and redraws that alone (DiffEdit). The source "
        "says what the picture shows, the target what it is to show. Returns the edit, the heatmap of the difference, "
        "and the mask. For any checkpoint.",
        {"image": "The picture to edit. SD1.5 wants about 512 x 512."},
        {
            "source": Widget(("2", "text"), "a photo of a cat", "What the picture shows, in a sentence."),
            "target": Widget(("3", "text"), "a photo of a tiger", "The same sentence with a word changed."),
            "strength": Widget(("9", "strength"), 0.8, "How much of it is redone: 0.5 keeps the form, 0.8 frees it."),
            "cfg": Widget(("13", "cfg"), 5.0, CFG),
            "steps": Widget(("9", "steps"), 40, f"{STEPS} The picture is inverted in as many."),
            "sampler": Widget(("14", "sampler_name"), "euler", "How each step is taken. `euler` is DDIM."),
            "mask threshold": Widget(("7", "threshold"), 0.5),
            "mask noise": Widget(("7", "strength"), 0.5),
            "mask samples": Widget(("7", "samples"), 10),
            "mask growth": Widget(("8", "expand"), 8, "Pixels added all around the mask; 8 is one latent pixel."),
            "mask seed": Widget(("7", "seed"), 0, "Of the noises that the mask is found with."),
        },
        {"image": ("17", 0), "heatmap": ("7", 1), "mask": ("20", 0)},
    ),
    "Redraw (Steer)": Blueprint(
        "sdedit",
        "Redraws a picture by a prompt, as much as the strength says (SDEdit, image to image): from strokes to a "
        "painting, from a sketch to a photo. For any checkpoint.",
        {"image": "The picture to redraw: strokes, a sketch, a photo."},
        {
            "prompt": Widget(("2", "text"), "a photo of a cat", "What the picture should show."),
            "negative": Widget(("3", "text"), "", NEGATIVE),
            "strength": Widget(("13", "strength"), 0.6, "0.3 keeps much of the picture, 0.6 its layout, 1 nothing."),
            "cfg": Widget(("4", "cfg"), 7.5, CFG),
            "steps": Widget(("13", "steps"), 30),
            "seed": Widget(("8", "noise_seed"), 0, SEED),
        },
        {"image": ("15", 0)},
        without=("9", "10", "11", "17", "18", "19"),
    ),
    "Place Words (Steer)": Blueprint(
        "paint_with_words",
        "Draws each phrase where a coloured map has its colour (Paint with Words). The legend names the colours; "
        "the prompt uses the same phrases. The picture gets the size of the map. For SD1.x, SD2.x, SDXL and most "
        "transformers, Flux and Qwen-Image among them.",
        {"image": "The map: a picture in plain colours, as large as the picture wanted. SD1.5 wants about 512 x 512."},
        {
            "prompt": Widget(("4", "text"), "a cat and a dog in a park", "The whole picture, with each phrase in it."),
            "legend": Widget(("3", "legend"), "#e6194b: cat\n#4363d8: dog"),
            "negative": Widget(("5", "text"), "", NEGATIVE),
            "weight": Widget(("4", "weight"), 0.4),
            "cfg": Widget(("6", "cfg"), 7.5, CFG),
            "steps": Widget(("9", "steps"), 30, STEPS),
            "sampler": Widget(("8", "sampler_name"), "euler", "How each step is taken."),
            "seed": Widget(("10", "noise_seed"), 0, SEED),
            "pictures": Widget(("7", "batch_size"), 1, "How many pictures to draw."),
        },
        {"image": ("12", 0)},
        changes={
            "7": {"inputs": {"width": ["14", 0], "height": ["14", 1]}},
            "14": {"class_type": "GetImageSize", "inputs": {"image": ["2", 0]}},
        },
    ),
}


class App(NamedTuple):
    """A form: the blueprint it runs, the picture and words it starts with, and the widgets it shows.

    `shown`: a short line (the form has room for about 38 letters) by name of the blueprint's widget; `image` and
    `ckpt_name` are the loaders'.
    """

    blueprint: str
    picture: str
    words: dict[str, str]
    shown: dict[str, str]


APPS = {
    "Steer 01 - Edit a photo by words.app": App(
        "Edit a Picture by Words (Steer)",
        "steer_cat.webp",
        {"source": "a photo of a cat", "target": "a photo of a tiger"},
        {
            "image": "Best about 512 x 512 (SDXL: 1024)",
            "source": "What the picture shows",
            "target": "The same with a word changed or added",
            "word weights": "Such as tiger: 1.5, fluffy: 2",
            "cross_end": "Lower frees the edit",
            "self_end": "Lower it where shapes are to change",
            "cfg": "How strictly the words are followed",
            "steps": "More take longer and are finer",
            "ckpt_name": "SD1.x, SD2.x or SDXL",
        },
    ),
    "Steer 03 - Inpaint.app": App(
        "Inpaint (Steer)",
        "steer_coffee_hole.webp",
        {"prompt": "a red cup full of strawberries on a wooden table"},
        {
            "image": "Its hole: transparent, or mask editor",
            "prompt": "The whole picture, the hole filled",
            "negative": "What it should not show",
            "cfg": "How strictly the words are followed",
            "steps": "More take longer and are finer",
            "inner": "More fit better and take longer",
            "seed": "Another number: another picture",
            "ckpt_name": "Any that makes pictures of this size",
        },
    ),
}
CHECKPOINT = {
    "name": "v1-5-pruned-emaonly-fp16.safetensors",
    "url": "https://huggingface.co/Comfy-Org/stable-diffusion-v1-5-archive/resolve/main/"
    "v1-5-pruned-emaonly-fp16.safetensors",
    "directory": "checkpoints",
}
"""The model that the apps start with; the editor offers to download it."""


def graph_of(blueprint: Blueprint) -> dict:
    """The API form of the whole job with the table's changes and values: the inside, its loaders and its savers."""
    prompt = deepcopy(load_workflow(blueprint.workflow))
    for node, change in blueprint.changes.items():
        entry = prompt.setdefault(node, {"inputs": {}})
        entry["inputs"] |= change["inputs"]
        entry.setdefault("class_type", change.get("class_type"))
    for widget in blueprint.widgets.values():
        node, name = widget.place
        prompt[node]["inputs"][name] = widget.value
    savers = {
        saver_of(prompt, output): {"inputs": {"filename_prefix": f"steer/{label}", "images": list(output)},
                                 "class_type": SAVER, "_meta": {"title": f"Save Image: {label}"}}
        for label, output in blueprint.outputs.items()
    }  # fmt: skip
    kept = {
        node: entry for node, entry in prompt.items() if node not in blueprint.without and entry["class_type"] != SAVER
    }
    for entry in kept.values():
        if entry["class_type"] in SOCKETS:
            del entry["_meta"]
    return kept | savers


def inside_of(blueprint: Blueprint) -> dict:
    """The part of `graph_of` that is in the blueprint."""
    return {node: entry for node, entry in graph_of(blueprint).items() if entry["class_type"] not in (*SOCKETS, SAVER)}


def wires_in(blueprint: Blueprint) -> dict[str, tuple[list, list[Place]]]:
    """By name of a socket: the loader's output that feeds it (node id, output), and the inputs inside that it feeds."""
    graph, found = graph_of(blueprint), {}
    for node, entry in inside_of(blueprint).items():
        for name, value in entry["inputs"].items():
            if isinstance(value, list) and graph[value[0]]["class_type"] in SOCKETS:
                socket = SOCKETS[graph[value[0]]["class_type"]][value[1]]
                found.setdefault(socket, (value, []))[1].append((node, name))
    return {socket: found[socket] for sockets in SOCKETS.values() for socket in sockets if socket in found}


def tooltips(blueprint: Blueprint, nodes: dict) -> dict[str, str]:
    """By name of an input: its tooltip. `nodes`: the host's /object_info."""
    tips = {socket: (SOCKET_TIPS | blueprint.sockets)[socket] for socket in wires_in(blueprint)}
    for label, widget in blueprint.widgets.items():
        tips[label] = widget.tooltip or specification(blueprint, widget, nodes)["tooltip"]
    return tips


def specification(blueprint: Blueprint, widget: Widget, nodes: dict) -> dict:
    """What the host says of the input inside. `nodes`: its /object_info."""
    node, name = widget.place
    sections = nodes[inside_of(blueprint)[node]["class_type"]]["input"].values()
    return next(section[name][1] for section in sections if name in section)


def saver_of(graph: dict, output: tuple[str, int]) -> str:
    """The node of the API form that saves this output."""
    (saver,) = [node for node, entry in graph.items() if entry["inputs"].get("images") == list(output)]
    return saver
