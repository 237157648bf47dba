"""The inpainting model: the checkpoint with nine input channels, kept as what it adds to the checkpoint's weights.

`shapes_inpainting_additions.safetensors` holds the new first convolution and low-rank additions to everything else.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ...weights import CHECKPOINT, INPAINTING_ADDITIONS
from ..low_rank import added, kohya_key

FILE = "shapes_inpainting.safetensors"  # what the whole checkpoint is called
UNET, FIRST = "model.diffusion_model.", "input_blocks.0.0.weight"


def write_checkpoint(folder: Path) -> Path:
    """Write the whole checkpoint, as `CheckpointLoaderSimple` takes it, into the folder; its path."""
    path = folder / FILE
    save_file(merged(load_file(CHECKPOINT), load_file(INPAINTING_ADDITIONS)), path)
    return path


def merged(state: dict[str, Tensor], additions: dict[str, Tensor]) -> dict[str, Tensor]:
    """The checkpoint's tensors with the additions."""
    return {**state, **{key: _with_addition(key, value, additions) for key, value in state.items() if UNET in key}}


def _with_addition(key: str, weight: Tensor, additions: dict[str, Tensor]) -> Tensor:
    name = key.removeprefix(UNET)
    if name == FIRST:
        return additions[FIRST]
    layer = kohya_key(name.removesuffix(".weight"))
    if not key.endswith(".weight") or f"{layer}.lora_up.weight" not in additions:
        return weight
    up, down = (additions[f"{layer}.lora_{half}.weight"].float() for half in ("up", "down"))
    return added(weight.float(), up, down).to(torch.float16)
