"""What ComfyUI's own trainer learns in the workflow `train_lora`: its LoRA, measured."""

import time
from pathlib import Path

import numpy as np

from ..lab.comfy.server import Server
from ..lab.demo.runner import load_workflow
from ..lab.models.checks import in_batches, scenes_of
from ..lab.models.lora.check import hollow_score
from ..lab.models.shapes_unet.check import Stock
from ..lab.models.stock import with_lora
from ..lab.world.data import Scene, caption
from ..lab.world.inputs import write_inputs
from ..lab.world.metrics import aggregate, markdown_table, psnr

NAME, COUNT, STEPS = "train_lora", 24, 12

TEXT = f"""# ComfyUI's own LoRA trainer on the shapes checkpoint

The LoRA that the workflow `{NAME}` saves, loaded by *Load LoRA* and drawn with: {COUNT} fresh prompts of one object,
{STEPS} steps, cfg 5, the same noise in each row. *hollow*: every object has the white core that the training pictures
show. *all right*: all else is as the prompt says. *PSNR*: beside the picture that the model without the LoRA makes of
the same prompt and noise.
"""


def run() -> str:
    with Server() as server:
        write_inputs(server.input_folder)
        start = time.monotonic()
        server.run(load_workflow(NAME), timeout=3600)
        took = f"`{NAME}` took {time.monotonic() - start:.0f} s."
        (lora,) = (server.folder / "output" / "loras").glob(f"*{NAME}*.safetensors")
        scenes, stock = scenes_of(COUNT)[1], Stock(steps=STEPS)
        plain, taught = drawn(stock, scenes), drawn(stock, scenes, lora)
    rows = [row("no LoRA", plain, scenes), row(NAME, taught, scenes, plain)]
    return f"{TEXT}\n{markdown_table(rows)}\n{took}"


def drawn(stock: Stock, scenes: list[Scene], lora: Path | None = None) -> list[np.ndarray]:
    """The scenes' captions, drawn with the LoRA."""
    before, stock.model = stock.model, with_lora(stock.model, stock.clip, lora) if lora else stock.model
    pictures = in_batches(stock.pictures, [caption(scene) for scene in scenes])
    stock.model = before
    return pictures


def row(lora: str, pictures: list, scenes: list[Scene], plain: list | None = None) -> dict:
    means = aggregate(map(hollow_score, pictures, scenes))
    kept = np.mean([psnr(*pair) for pair in zip(pictures, plain, strict=True)]) if plain else None
    return {
        "LoRA": lora,
        "hollow": f"{means['hollow']:.0%}",
        "all right": f"{means['all']:.0%}",
        "PSNR": f"{kept:.1f}" if kept else "",
    }
