"""What ComfyUI's own trainer learns in the workflows `train_lora` and `dreambooth`: their LoRAs, measured."""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..lab.comfy.server import Server
from ..lab.demo.runner import load_workflow
from ..lab.models.checks import in_batches, scenes_of
from ..lab.models.lora.check import hollow_score
from ..lab.models.shapes_unet.check import Stock
from ..lab.models.stock import with_lora
from ..lab.world.data import Scene, caption
from ..lab.world.hollow import read_hollow
from ..lab.world.inputs import write_inputs
from ..lab.world.metrics import aggregate, markdown_table, psnr

COUNT, STEPS, WORD = 24, 12, "left "
LOADER, PRIOR = "LoraModelLoader", "16"  # of `dreambooth`, the node with the model's own pictures

TEXT = f"""# ComfyUI's own LoRA trainer on the shapes checkpoint

The LoRAs that the workflows `train_lora` and `dreambooth` save, loaded by *Load LoRA* at the strength that they have
there, and drawn with: {COUNT} fresh prompts of one object, {STEPS} steps, cfg 5, the same noise in each row. *hollow*:
every object has the white core that the training pictures show. *all right*: all else is as the prompt says. *PSNR*:
beside the picture that the model without the LoRA makes of the same prompt and noise.
"""


@dataclass(frozen=True)
class Trained:
    """What a workflow left: its LoRA's file and strength, how long it took, which of its prior pictures are hollow."""

    lora: Path
    strength: float
    seconds: float
    prior: list[bool]


def run() -> str:
    with Server() as server:
        write_inputs(server.input_folder)
        alone, booth = trained(server, "train_lora"), trained(server, "dreambooth")
        scenes, stock = scenes_of(COUNT)[1], Stock(steps=STEPS)
        plain = {word: drawn(stock, scenes, word) for word in ("", WORD)}
        rows = [row("no LoRA", word, plain[word], scenes) for word in plain]
        rows.append(row("train_lora", "", drawn(stock, scenes, "", alone), scenes, plain[""]))
        rows += [row("dreambooth", word, drawn(stock, scenes, word, booth), scenes, plain[word]) for word in plain]
    last = f"Of the {len(booth.prior)} pictures that the model makes for `dreambooth` {sum(booth.prior)} are hollow."
    took = f"`train_lora` took {alone.seconds:.0f} s, `dreambooth` {booth.seconds:.0f} s."
    return f"{TEXT}\n{markdown_table(rows)}\n{last} {took}"


def trained(server: Server, name: str) -> Trained:
    """Runs the workflow, with its prior pictures saved too."""
    prompt = load_workflow(name)
    if name == "dreambooth":
        prompt["prior"] = {"class_type": "SaveImage", "inputs": {"filename_prefix": "prior", "images": [PRIOR, 0]}}
    start = time.monotonic()
    pictures = server.images(server.run(prompt, timeout=3600))
    seconds = time.monotonic() - start
    prior = [read_hollow(np.asarray(picture))[1] for node, picture in pictures if node == "prior"]
    (lora,) = (server.folder / "output" / "loras").glob(f"*{name}*.safetensors")
    (strength,) = (node["inputs"]["strength_model"] for node in prompt.values() if node["class_type"] == LOADER)
    return Trained(lora, strength, seconds, [bool(hollow) and all(hollow) for hollow in prior])


def drawn(stock: Stock, scenes: list[Scene], word: str, lora: Trained | None = None) -> list[np.ndarray]:
    """The scenes' captions with the word before them, drawn with the LoRA."""
    before = stock.model
    if lora:
        stock.model = with_lora(before, stock.clip, lora.lora, lora.strength)
    pictures = in_batches(stock.pictures, [word + caption(scene) for scene in scenes])
    stock.model = before
    return pictures


def row(lora: str, word: str, pictures: list, scenes: list[Scene], plain: list | None = None) -> dict:
    means = aggregate(map(hollow_score, pictures, scenes))
    kept = np.mean([psnr(*pair) for pair in zip(pictures, plain, strict=True)]) if plain else None
    return {
        "LoRA": lora,
        "rare word": word or "no",
        "hollow": f"{means['hollow']:.0%}",
        "all right": f"{means['all']:.0%}",
        "PSNR": f"{kept:.1f}" if kept else "",
    }
