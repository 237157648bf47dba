"""What ComfyUI's own trainer learns in the workflows `train_lora` and `dreambooth`: their LoRAs, measured."""

import time
from pathlib import Path

import numpy as np

from ..lab.comfy.server import Server
from ..lab.demo.runner import load_workflow
from ..lab.models.checks import in_batches, scenes_of
from ..lab.models.lora.check import hollow_score
from ..lab.models.shapes_unet.check import Stock
from ..lab.models.stock import with_lora
from ..lab.world.data import BACKGROUNDS, caption
from ..lab.world.inputs import SUBJECT_IS, write_inputs
from ..lab.world.metrics import aggregate, markdown_table, psnr
from ..lab.world.reader import score

COUNT, STEPS = 24, 12
HEARTS = [f"a heart on a {bg} background" for bg in BACKGROUNDS for _ in range(6)]
ALONE, BOOTH, WORD = "train_lora", "dreambooth", "left"

TEXT = f"""# ComfyUI's own LoRA trainer on the shapes checkpoint

The LoRAs that the workflows save, loaded by *Load LoRA* and drawn with: fresh prompts of one object, {STEPS} steps, cfg
5, the same noise in each row. *PSNR*: beside the picture that the model without the LoRA makes of the same prompt and
noise.

## {ALONE}

{COUNT} prompts. *hollow*: every object has the white core that the training pictures show. *all right*: all else is as
the prompt says.

"""
BOOTH_TEXT = f"""
## {BOOTH}

Ten pictures of a {SUBJECT_IS[0]} heart teach the word *{WORD}*, beside ten that the model itself draws of the class, *a
{SUBJECT_IS[1]} heart*. *subject*: of {len(HEARTS)} pictures for *a {WORD} heart on a ... background* those that show
one {SUBJECT_IS[0]} heart on it. *class*: of {len(HEARTS)} for *a {SUBJECT_IS[1]} heart on a ... background* those that
are right. *others*: of those for the {COUNT} prompts of above those that are right.

"""


def run() -> str:
    with Server() as server:
        write_inputs(server.input_folder)
        (alone, first), (booth, second) = (trained(server, name) for name in (ALONE, BOOTH))
        scenes, stock = scenes_of(COUNT)[1], Stock(steps=STEPS)
        captions = [caption(scene) for scene in scenes]
        prompts = {
            "subject": [text.replace("heart", f"{WORD} heart") for text in HEARTS],
            "class": [text.replace("heart", f"{SUBJECT_IS[1]} heart") for text in HEARTS],
            "others": captions,
        }
        truth = {**prompts, "subject": [text.replace("heart", f"{SUBJECT_IS[0]} heart") for text in HEARTS]}
        plain, taught = drawn(stock, captions), drawn(stock, captions, alone)
        hollow = [
            hollow_row(name, pictures, scenes) | {"PSNR": kept(pictures, plain)}
            for name, pictures in (("no LoRA", plain), (ALONE, taught))
        ]
        before, after = ({name: drawn(stock, texts, lora) for name, texts in prompts.items()} for lora in (None, booth))
    booths = [
        {"LoRA": name}
        | {which: share(pictures[which], truth[which]) for which in prompts}
        | {"PSNR of class": kept(pictures["class"], before["class"])}
        for name, pictures in (("no LoRA", before), (BOOTH, after))
    ]
    took = f"`{ALONE}` took {first:.0f} s, `{BOOTH}` {second:.0f} s."
    return f"{TEXT}{markdown_table(hollow)}{BOOTH_TEXT}{markdown_table(booths)}\n{took}"


def trained(server: Server, name: str) -> tuple[Path, float]:
    """The LoRA that a workflow saves, and how long it took."""
    start = time.monotonic()
    server.run(load_workflow(name), timeout=3600)
    (lora,) = (server.folder / "output" / "loras").glob(f"*{name}*.safetensors")
    return lora, time.monotonic() - start


def drawn(stock: Stock, captions: list[str], lora: Path | None = None) -> list[np.ndarray]:
    """The captions, drawn with the LoRA."""
    before, stock.model = stock.model, with_lora(stock.model, stock.clip, lora) if lora else stock.model
    pictures = in_batches(stock.pictures, captions)
    stock.model = before
    return pictures


def hollow_row(lora: str, pictures: list, scenes: list) -> dict:
    means = aggregate(map(hollow_score, pictures, scenes))
    return {"LoRA": lora, "hollow": f"{means['hollow']:.0%}", "all right": f"{means['all']:.0%}"}


def share(pictures: list, captions: list[str]) -> str:
    """Of the pictures that are as the captions say."""
    return f"{aggregate(map(score, pictures, captions))['all']:.0%}"


def kept(pictures: list, plain: list) -> str:
    """PSNR beside the pictures without the LoRA; nothing for themselves."""
    return "" if pictures is plain else f"{np.mean([psnr(*pair) for pair in zip(pictures, plain, strict=True)]):.1f} dB"
