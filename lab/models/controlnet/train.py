"""Trains a ControlNet (Zhang et al. 2023, arXiv:2302.05543) that is told by outlines; writes its file.

It starts as a copy of the UNet's first half, behind convolutions that start at zero.
"""

import torch
import torch.nn.functional as F
from comfy.cldm.cldm import ControlNet
from safetensors.torch import save_file
from torch import Tensor, nn

from ...weights import CONTROLNET
from ...world.control_pictures import outlines
from ...world.data import Scene, render
from ..fine_tuning import Base, arguments, halved, scenes_of, train
from ..shapes_unet.latents import stacked
from ..shapes_unet.loader import UNET_CONFIG
from ..shapes_unet.network import OPERATIONS, initialised, make_host_trainable

BATCH, LEARNING_RATE, CAPTION_DROPOUT = 16, 1e-3, 0.3
SHUFFLED = 64  # channels of an 8x8 square
UNIT = 1.278  # what SiLU makes one of


def main(argv: list[str]) -> None:
    """The command line."""
    wanted = arguments(argv, "controlnet.train", __doc__, CONTROLNET)
    torch.manual_seed(0)
    make_host_trainable()
    base, scenes = Base(), scenes_of(wanted.scenes, 12)
    latents = base.latents(wanted.work / f"plain_{wanted.scenes}.safetensors", map(render, scenes))
    control = controlnet(base.unet)
    shuffling, last = control.input_hint_block[:-1], control.input_hint_block[-1:]
    hints = shuffled(shuffling, scenes)
    control.input_hint_block = last

    def loss() -> Tensor:
        rows, context = base.drawn(scenes, BATCH, CAPTION_DROPOUT)
        hint = F.pad(hints[rows].float(), (0, 0, 0, 0, 0, last[0].in_channels - hints.shape[1]))

        def eps(x: Tensor, t: Tensor) -> Tensor:
            told = control(x, hint, t, context)
            return base.unet(x, t, context=context, control=told, transformer_options={})

        return base.schedule.loss(latents[rows], eps, noisier=True)

    train(list(control.parameters()), loss, wanted.minutes, LEARNING_RATE)
    control.input_hint_block = nn.Sequential(*shuffling, *last)
    save_file(halved(control.state_dict()), wanted.file)


def controlnet(unet: nn.Module) -> ControlNet:
    """The host's network, its shared part copied from the UNet; all but its hint's first layers learn."""
    control = initialised(ControlNet(**UNET_CONFIG, hint_channels=3, operations=OPERATIONS)).requires_grad_(True)
    own = control.state_dict().keys()
    control.load_state_dict({key: value for key, value in unet.state_dict().items() if key in own}, strict=False)
    for zero in (*control.zero_convs, control.middle_block_out, control.input_hint_block[-1:]):
        for parameter in zero.parameters():
            nn.init.zeros_(parameter)
    _shuffle_pixels(control.input_hint_block[:-1])
    return control


@torch.no_grad()
def shuffled(shuffling: nn.Sequential, scenes: list[Scene]) -> Tensor:
    """The outlines behind the hint's first layers, fp16 (n, 64, 16, 16): what is left of 256 channels."""
    parts = []
    for first in range(0, len(scenes), BATCH):
        hint = stacked(map(outlines, scenes[first : first + BATCH]))
        with torch.autocast("cpu", torch.bfloat16):
            parts.append(shuffling(hint.contiguous(memory_format=torch.channels_last), None)[:, :SHUFFLED].half())
    return torch.cat(parts).contiguous()


@torch.no_grad()
def _shuffle_pixels(layers: nn.Sequential) -> None:
    """Fix the layers so that each 8x8 square of gray pixels becomes 64 channels: fast to train, for nothing is lost."""
    live = 1
    for conv in (layer for layer in layers if isinstance(layer, nn.Conv2d)):
        conv.requires_grad_(False)
        nn.init.zeros_(conv.weight)
        nn.init.zeros_(conv.bias)
        if conv.in_channels == 3:
            conv.weight[0, :, 1, 1] = UNIT / 3
            continue
        taps = [(0, 0), (0, 1), (1, 0), (1, 1)] if conv.stride[0] == 2 else [(0, 0)]
        for number, (down, right) in enumerate(taps):
            for channel in range(live):
                conv.weight[number * live + channel, channel, 1 + down, 1 + right] = UNIT
        live *= len(taps)
