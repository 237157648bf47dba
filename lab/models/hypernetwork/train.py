"""Trains a hypernetwork: every object with a white core (`hollow.py`), captions unchanged. Writes its file."""

import torch
from safetensors.torch import save_file
from torch import Tensor

from ...weights import HYPERNETWORK
from ...world.hollow import render_hollow
from ..fine_tuning import Base, arguments, halved, scenes_of, train
from ..shapes_unet.loader import TEXT_WIDTH, UNET_CONFIG
from ..shapes_unet.network import make_host_trainable
from .network import Hypernetwork

BATCH, LEARNING_RATE, CAPTION_DROPOUT = 32, 2e-3, 0.1
WIDTHS = sorted({TEXT_WIDTH, *(UNET_CONFIG["model_channels"] * times for times in UNET_CONFIG["channel_mult"])})


def main(argv: list[str]) -> None:
    """The command line."""
    wanted = arguments(argv, "hypernetwork.train", __doc__, HYPERNETWORK)
    torch.manual_seed(0)
    make_host_trainable()
    base, scenes = Base(), scenes_of(wanted.scenes, 11)
    latents = base.latents(wanted.work / f"hollow_{wanted.scenes}.safetensors", map(render_hollow, scenes))
    network = Hypernetwork(WIDTHS)

    def loss() -> Tensor:
        rows, context = base.drawn(scenes, BATCH, CAPTION_DROPOUT)
        options = network.options()
        return base.schedule.loss(
            latents[rows], lambda x, t: base.unet(x, t, context=context, transformer_options=options)
        )

    train(list(network.parameters()), loss, wanted.minutes, LEARNING_RATE)
    save_file(halved(network.state_dict()), wanted.file)
