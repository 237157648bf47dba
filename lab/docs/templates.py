"""The templates that users open: what each swaps of its API form, and what it says.

The API form in example_workflows/api/ is made for the shapes checkpoint, for demo and tests. A template is the same
graph for a checkpoint that people have, on pictures that come with this package; `lab.docs.editor_form` makes its
editor form.
"""

import json
from copy import deepcopy

from ..demo.runner import adapted, load_workflow
from ..package import ROOT
from ..weights import CHECKPOINT
from .template_table import MODELS, TABLE, TOY, Family, Template, Wire

EXAMPLES = ROOT / "example_workflows"
HELP = "https://github.com/steer-diffusion/ComfyUI-Steer/blob/main/web/docs"
HUGGING_FACE = "https://huggingface.co"
SCALE, COMPARE = "ImageScaleToTotalPixels", "ImageCompare"  # the nodes that a template adds
SCALED_BEFORE = ("VAEEncode", "ImagePadForOutpaint", "SteerPadImage", "ImageBlur", "ImageFromBatch")
CLIPS = "VAEDecode", "ImageScaleBy"  # what a clip is saved behind
OUTPUTS = {"CLIPLoader": 1, "VAELoader": 2}  # and the checkpoint's outputs that are files of their own


def templates() -> list[Template]:
    """All of them, editions too, as the files are sorted."""
    return sorted(
        (edition for base in TABLE for edition in (base, *map(base.of, base.editions))), key=lambda each: each.name
    )


def is_front(template: Template) -> bool:
    """Whether it is one of the first twelve, which the list begins with."""
    return template in TABLE[:12]


def prompt_of(template: Template) -> dict:
    """What the editor queues of it, in API form; without the titles."""
    prompt = adapted(load_workflow(template.api), None, template.family.size)
    for node, inputs in template.swaps.items():
        if node in template.classes:
            prompt[node] = {"class_type": template.classes[node], "inputs": {}}
        prompt[node]["inputs"] |= inputs
    _of_family(prompt, template.family)
    for entry in prompt.values():
        entry["inputs"] |= template.family.inputs.get(entry["class_type"], {})
        if entry["inputs"].get("ckpt_name") == CHECKPOINT.name:
            entry["inputs"]["ckpt_name"] = template.family.checkpoint
    if template.family is not TOY and template.scaled:
        _scale_photos(prompt, template.family)
    if template.compare:
        before, after = (_scaled(prompt, wire) for wire in template.compare)
        prompt[_new(prompt)] = {"class_type": COMPARE, "inputs": {"image_a": before, "image_b": after}}
    return {node: {**entry, "_meta": {}} for node, entry in prompt.items()}


def undone(prompt: dict, template: Template) -> dict:
    """The API form again: what a template adds left out, the inputs that it swaps set back; without titles."""
    original, prompt = load_workflow(template.api), deepcopy(prompt)
    instead = {}  # of what a template adds, the wire that is there again
    for node in [node for node in prompt if node not in original]:
        added = prompt.pop(node)
        loaded = [OUTPUTS[added["class_type"]]] if added["class_type"] in OUTPUTS else []
        instead[node] = [_checkpoint(original), *loaded] if loaded else added["inputs"].get("image")
    for node, entry in prompt.items():
        entry.pop("_meta", None)
        if entry["class_type"] != original[node]["class_type"]:
            wires = {name: value for name, value in entry["inputs"].items() if isinstance(value, list)}
            entry |= {"class_type": original[node]["class_type"], "inputs": original[node]["inputs"] | wires}
        for name, value in entry["inputs"].items():
            if isinstance(value, list) and value[0] in instead:
                entry["inputs"][name] = instead[value[0]]
        entry["inputs"] |= {
            name: original[node]["inputs"][name] for name in swapped(template)[node] if name in original[node]["inputs"]
        }
    return prompt


def swapped(template: Template) -> dict[str, list[str]]:
    """The inputs of each node of the API form that have another value in the template."""
    original, prompt = load_workflow(template.api), prompt_of(template)
    return {
        node: [
            name
            for name, value in entry["inputs"].items()
            if not isinstance(value, list) and prompt[node]["inputs"].get(name) != value
        ]
        for node, entry in original.items()
    }


def models_of(entry: dict) -> list[dict]:
    """Of a node of a prompt, the models it loads that the editor can offer to download, as the editor wants them."""
    names = [value for value in entry["inputs"].values() if isinstance(value, str) and value in MODELS]
    return [{"name": name, "url": _url(MODELS[name][0]), "directory": MODELS[name][1]} for name in names]


def note_of(template: Template) -> str:
    """What the note in it says, in Markdown."""
    knobs = "\n".join(f"- {knob}" for knob in template.knobs)
    needs = "" if template.family is TOY else DOWNLOAD.format(template.family.name, template.family.pixels)
    return (
        f"# {template.heading}\n{template.what}{template.family.hint}\n\n"
        f"1. **Load**: {template.load}\n2. **Describe**: {template.describe}\n3. **Run**.\n\n"
        f"**What to turn**\n{knobs}\n\n{needs}{SLIDER if template.compare else ''}"
        f"[Help page]({HELP}/{template.main}.md); it also opens from the node: select it, press *i*."
    )


DOWNLOAD = "Made for {0} at {1} pixels. A model that you lack is offered for download when the template opens.\n\n"
SLIDER = "*Compare Images* has its slider in Nodes 2.0 (in the ComfyUI menu).\n\n"


def _of_family(prompt: dict, family: Family) -> None:
    """Loaders of separate files in the place of the checkpoint's, and clips in the place of pictures."""
    if family.loaders:
        checkpoint = _checkpoint(prompt)
        for kind, inputs in family.loaders:
            if kind not in OUTPUTS:
                prompt[checkpoint] = {"class_type": kind, "inputs": dict(inputs)}
                continue
            new = _new(prompt)
            for entry in prompt.values():
                for name, value in entry["inputs"].items():
                    if value == [checkpoint, OUTPUTS[kind]]:
                        entry["inputs"][name] = [new, 0]
            prompt[new] = {"class_type": kind, "inputs": dict(inputs)}
    if family.frames:
        for entry in prompt.values():
            if entry["class_type"] == "EmptyLatentImage":
                entry |= {"class_type": "EmptyHunyuanLatentVideo", "inputs": {"length": family.frames}}
            elif entry["class_type"] == "SaveImage" and _is_of(prompt, entry["inputs"]["images"], CLIPS):
                entry["class_type"] = "SaveAnimatedWEBP"
                entry["inputs"] |= {"fps": 16.0, "lossless": False, "quality": 80, "method": "default"}


def _checkpoint(prompt: dict) -> str:
    return next(node for node, entry in prompt.items() if entry["class_type"] == "CheckpointLoaderSimple")


def _is_of(prompt: dict, wire: Wire, kinds: tuple[str, ...]) -> bool:
    return prompt[wire[0]]["class_type"] in kinds


def _url(path: str) -> str:
    return path if path.startswith("https:") else f"{HUGGING_FACE}/{path}"


def _new(prompt: dict) -> str:
    return str(max(map(int, prompt)) + 1)


def _scale_photos(prompt: dict, family: Family) -> None:
    """Behind each picture that is encoded, a node that brings pictures of any size to the checkpoint's."""
    steps = 16 if family.frames else 8
    for node in [node for node, entry in prompt.items() if entry["class_type"] == "LoadImage"]:
        wires = [
            (entry, name) for entry in prompt.values() for name, value in entry["inputs"].items() if value == [node, 0]
        ]
        if any(entry["class_type"] in SCALED_BEFORE for entry, _ in wires):
            new = _new(prompt)
            for entry, name in wires:
                entry["inputs"][name] = [new, 0]
            inputs = {"upscale_method": "lanczos", "megapixels": family.megapixels, "resolution_steps": steps}
            prompt[new] = {"class_type": SCALE, "inputs": {"image": [node, 0], **inputs}}


def _scaled(prompt: dict, wire: Wire) -> Wire:
    """The same picture behind its scaling, where it has one."""
    found = [node for node, each in prompt.items() if each["class_type"] == SCALE and each["inputs"]["image"] == wire]
    return [found[0], 0] if found else wire


def saved(template: Template) -> dict:
    """Its editor form."""
    return json.loads((EXAMPLES / f"{template.name}.json").read_text())
