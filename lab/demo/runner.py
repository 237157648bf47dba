"""Run the example workflows headless: start the host, queue each over its API, save the pictures and one sheet."""

import argparse
import json
import sys
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from ..comfy.find import find_host
from ..package import ROOT
from ..weights import CHECKPOINT
from .contact_sheet import contact_sheet

WORKFLOWS = ROOT / "example_workflows" / "api"
OUTPUT = ROOT / "lab" / "output"
SHAPES_SIZE, USUAL_SIZE = 128, 512  # pixels: what the shapes checkpoint was trained on, and a user's own most likely
PIXEL_INPUTS = {
    "EmptyLatentImage": ("width", "height"),
    "ImagePadForOutpaint": ("left", "top", "right", "bottom", "feathering"),
    "SteerPadImage": ("left", "top", "right", "bottom"),
    "SolidMask": ("width", "height"),
    "MaskComposite": ("x", "y"),
    "SteerStitch": ("feather",),
    "ImageScale": ("width", "height"),
    "ImageCrop": ("x", "y", "width", "height"),
    "SteerCropOperator": ("x", "y"),
}
SHORT = {"steps": 6, "inner_steps": 3, "refine": 2, "resamples": 2, "jump_length": 2, "samples": 4, "cutouts": 2,
         "iterations": 1, "grad_accumulation_steps": 2}  # fmt: skip
"""Numbers with which a workflow is done soon."""
TRAINING = ("train_lora", "dreambooth")
"""Workflows whose pictures differ: the trainer's first weights are random numbers that its seed does not set."""
OLDER = {"TrainLoraNode": "MODEL"}
"""The first output of a node where the host is too old for the workflows."""
COMPANIONS = "ckpt_name", "lora_name", "control_net_name", "hypernetwork_name"
Captioned = tuple[Image.Image, str]


def main(argv: list[str] | None = None) -> int:
    """The command line; the exit code is 1 when a workflow failed and 2 when it was asked for what is not there."""
    wanted = _arguments(argv)
    try:
        host = find_host()
        names = _chosen(wanted.workflow)
        checkpoint = _existing(wanted.checkpoint)
        names = _fitting(names, checkpoint, asked=bool(wanted.workflow))
    except ValueError as error:
        return _fail(str(error))
    if host:
        size = wanted.size or (USUAL_SIZE if checkpoint else SHAPES_SIZE)
        return run_workflows(host, names, checkpoint, size, wanted.out)
    if wanted.workflow or checkpoint:
        return _fail("--workflow and --checkpoint need ComfyUI: set COMFYUI_PATH, or clone it to ~/comfy/ComfyUI")
    from .without_host import main as without_host

    return without_host(wanted.out)


def workflow_names() -> list[str]:
    """The example workflows, by the stem of their files."""
    return sorted(path.stem for path in WORKFLOWS.glob("*.json"))


def load_workflow(name: str) -> dict:
    """An example workflow in API form."""
    return json.loads((WORKFLOWS / f"{name}.json").read_text())


def shortened(prompt: dict, short: dict[str, int] | None = None) -> dict:
    """The prompt with these numbers, by default SHORT, in place of its own; wires of those names stay."""
    prompt, short = deepcopy(prompt), SHORT if short is None else short
    for node in prompt.values():
        numbers = {name for name, value in node["inputs"].items() if isinstance(value, int)}
        node["inputs"].update({name: short[name] for name in short.keys() & numbers})
    return prompt


def adapted(prompt: dict, checkpoint: Path | None, size: int) -> dict:
    """The prompt for another checkpoint and another picture size; inputs given in pixels grow along."""
    prompt = deepcopy(prompt)
    for node in prompt.values():
        inputs = node["inputs"]
        if checkpoint and node["class_type"] == "CheckpointLoaderSimple":
            inputs["ckpt_name"] = checkpoint.name
        for name in PIXEL_INPUTS.get(node["class_type"], ()):
            inputs[name] = round(inputs[name] * size / SHAPES_SIZE / 8) * 8
    return prompt


def companions(prompt: dict) -> list[str]:
    """The model files of a workflow that fit the shapes checkpoint and no other."""
    named = [node["inputs"].get(name) for node in prompt.values() for name in COMPANIONS]
    return sorted({name for name in named if name and name != CHECKPOINT.name})


def lacking(prompt: dict, there: Mapping[str, dict]) -> list[str]:
    """The nodes of a workflow that are not in a host's /object_info, or with an older trainer's outputs."""
    kinds = sorted({node["class_type"] for node in prompt.values()})
    return [kind for kind in kinds if kind not in there or there[kind]["output"][:1] == [OLDER.get(kind)]]


def run_workflows(host: Path, names: list[str], checkpoint: Path | None, size: int, out: Path) -> int:
    """Run each workflow, save its pictures to `out`, and say at the end what failed; the exit code."""
    from ..comfy.server import HostError, Server
    from ..world.inputs import write_inputs

    shown, failures = [], []
    print(f"Starting ComfyUI from {host} ...", flush=True)
    with Server(host, checkpoint) as server:
        write_inputs(server.input_folder, size)
        there = server.object_info()
        for name in names:
            if unknown := lacking(load_workflow(name), there):
                print(
                    f"Left out: {name} needs a newer {', '.join(unknown)} than this ComfyUI has",
                    flush=True,
                )
                continue
            try:
                shown.append(run_workflow(server, name, adapted(load_workflow(name), checkpoint, size), out))
            except HostError as error:
                failures.append(f"workflow {name} failed: {error}")
    if shown:
        shown.sort(key=len, reverse=True)  # full rows first: no workflow is broken over two
        contact_sheet(sum(shown, []), out / "contact_sheet.png", "Steer: the example workflows", columns=8)
        print(f"Pictures and contact sheet: {out}")
    return _fail("\n".join(failures), 1) if failures else 0


def run_workflow(server, name: str, prompt: dict, out: Path) -> list[Captioned]:
    """Run one workflow and save its pictures as NAME_1.png, ...; what the sheet shows of it, inputs first."""
    saved = server.images(_run_with_bar(server, name, prompt))
    saved.sort(key=lambda item: int(item[0]))
    out.mkdir(parents=True, exist_ok=True)
    for number, (_, picture) in enumerate(saved, 1):
        picture.save(out / f"{name}_{number}.png")
    inputs = [
        (node, _load(server.input_folder / entry["inputs"]["image"]))
        for node, entry in prompt.items()
        if entry["class_type"] == "LoadImage"
    ]
    return [(picture, f"{name}: {prompt[node]['_meta']['title']}") for node, picture in inputs + saved]


def _run_with_bar(server, name: str, prompt: dict) -> dict:
    """The outputs; the bar counts the nodes that sample, and within one its steps."""
    samplers = [node for node in prompt if "latent_image" in prompt[node]["inputs"]]
    done = dict.fromkeys(samplers, 0.0)
    with tqdm(total=len(done), desc=f"{name:18}", bar_format="{desc} {percentage:3.0f}% |{bar:30}| {elapsed}") as bar:

        def show(node: str, fraction: float) -> None:
            if node in done:
                done[node] = fraction
            bar.update(sum(done.values()) - bar.n)

        outputs = server.run(prompt, show, timeout=1800)
        bar.update(len(done) - bar.n)
    return outputs


def _load(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        return picture.copy()


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m lab.demo", description=__doc__)
    parser.add_argument("--workflow", metavar="NAME", action="append", help="run only this one; may be repeated")
    parser.add_argument("--checkpoint", metavar="FILE", type=Path, help="your own, in place of the shapes checkpoint")
    parser.add_argument("--size", metavar="N", type=int, help="picture size in pixels (128; 512 with --checkpoint)")
    parser.add_argument("--out", metavar="DIR", type=Path, default=OUTPUT, help="where pictures go (lab/output)")
    return parser.parse_args(argv)


def _chosen(names: list[str] | None) -> list[str]:
    there = workflow_names()
    unknown = [name for name in names or [] if name not in there]
    if unknown:
        raise ValueError(f"no workflow called {', '.join(unknown)}; there are: {', '.join(there)}")
    return names or there


def _fitting(names: list[str], checkpoint: Path | None, asked: bool) -> list[str]:
    """Those that run with this checkpoint; ValueError when one that was asked for does not."""
    unfit = {name: files for name in names if checkpoint and (files := companions(load_workflow(name)))}
    said = [f"{name} needs {', '.join(files)}, made for the shapes checkpoint alone" for name, files in unfit.items()]
    if unfit and asked:
        raise ValueError(f"not with --checkpoint: {'; '.join(said)}. In the editor, choose files made for your own.")
    for line in said:
        print(f"Left out: {line}", flush=True)
    return [name for name in names if name not in unfit]


def _existing(checkpoint: Path | None) -> Path | None:
    if checkpoint and not checkpoint.is_file():
        raise ValueError(f"--checkpoint {checkpoint} is not a file")
    return checkpoint


def _fail(message: str, code: int = 2) -> int:
    print(message, file=sys.stderr)
    return code
