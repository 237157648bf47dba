"""Trains a LoRA of the UNet: every object with a white core (`hollow.py`), captions unchanged. Writes its file."""

import torch
from safetensors.torch import save_file
from torch import Tensor

from ...weights import LORA
from ...world.hollow import render_hollow
from ..fine_tuning import Base, arguments, scenes_of, train
from ..low_rank import attach, halves, kohya_state
from ..shapes_unet.network import make_host_trainable

RANK, BATCH, LEARNING_RATE, CAPTION_DROPOUT = 8, 32, 2e-3, 0.1


def main(argv: list[str]) -> None:
    """The command line."""
    wanted = arguments(argv, "lora.train", __doc__, LORA, 6000)
    torch.manual_seed(0)
    make_host_trainable()
    base, scenes = Base(), scenes_of(wanted.scenes, 11)
    latents = base.latents(wanted.work / f"hollow_{wanted.scenes}.safetensors", map(render_hollow, scenes))
    additions = attach(base.unet, RANK)

    def loss() -> Tensor:
        rows, context = base.drawn(scenes, BATCH, CAPTION_DROPOUT)
        return base.schedule.loss(latents[rows], lambda x, t: base.unet(x, t, context=context, transformer_options={}))

    train(halves(additions), loss, wanted.minutes, LEARNING_RATE)
    save_file(kohya_state(additions), wanted.file)
