"""Trains a T2I-Adapter (Mou et al. 2023, arXiv:2302.08453) that is told by silhouettes; writes its file."""

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ...weights import T2I_ADAPTER
from ...world.control_pictures import silhouettes
from ...world.data import render
from ..fine_tuning import Base, arguments, halved, scenes_of, train
from ..shapes_unet.latents import stacked
from ..shapes_unet.network import make_host_trainable
from .loader import ShapesAdapter

BATCH, LEARNING_RATE, CAPTION_DROPOUT = 16, 1e-3, 0.3


def main(argv: list[str]) -> None:
    """The command line."""
    wanted = arguments(argv, "t2i_adapter.train", __doc__, T2I_ADAPTER)
    torch.manual_seed(0)
    make_host_trainable()
    base, scenes, adapter = Base(), scenes_of(wanted.scenes, 12), ShapesAdapter()
    latents = base.latents(wanted.work / f"plain_{wanted.scenes}.safetensors", map(render, scenes))
    told = stacked(map(silhouettes, scenes)).mean(1, keepdim=True)
    for conv in (adapter.conv_in, *(block.block2 for block in adapter.body)):  # it starts by adding nothing
        nn.init.zeros_(conv.weight)
        nn.init.zeros_(conv.bias)
    nn.init.zeros_(adapter.body[2].in_conv.bias)

    def loss() -> Tensor:
        rows, context = base.drawn(scenes, BATCH, CAPTION_DROPOUT)

        def eps(x: Tensor, t: Tensor) -> Tensor:
            return base.unet(x, t, context=context, control=adapter(told[rows]), transformer_options={})

        return base.schedule.loss(latents[rows], eps, noisier=True)

    train(list(adapter.parameters()), loss, wanted.minutes, LEARNING_RATE)
    save_file(halved(adapter.state_dict()), wanted.file)
