"""Low-rank additions (LoRA, Hu et al. 2021, arXiv:2106.09685) to all weights of the UNet, by kohya's keys."""

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

PREFIX = "lora_unet_"


class LowRank(nn.Module):
    """weight + up @ down, where `up` starts at zero."""

    def __init__(self, weight: Tensor, rank: int):
        super().__init__()
        outputs, *inputs = weight.shape
        self.down = nn.Parameter(torch.empty(rank, *inputs))
        self.up = nn.Parameter(torch.zeros(outputs, rank, *[1] * (len(inputs) - 1)))
        nn.init.kaiming_uniform_(self.down, a=5**0.5)

    def forward(self, weight: Tensor) -> Tensor:
        return added(weight, self.up, self.down)


def added(weight: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """The weight with its addition."""
    return weight + (up.flatten(1) @ down.flatten(1)).view_as(weight)


def attach(unet: nn.Module, rank: int, but: str = "") -> dict[str, LowRank]:
    """The additions by the name of their layer, now part of the frozen UNet; `but` names a layer to leave alone."""
    layers = {name: part for name, part in unet.named_modules() if isinstance(part, nn.Linear | nn.Conv2d)}
    layers.pop(but, None)
    additions = {name: LowRank(layer.weight, rank) for name, layer in layers.items()}
    for name, layer in layers.items():
        parametrize.register_parametrization(layer, "weight", additions[name])
    return additions


def halves(additions: dict[str, LowRank]) -> list[nn.Parameter]:
    """What learns in them."""
    return [half for addition in additions.values() for half in (addition.up, addition.down)]


def kohya_key(layer: str) -> str:
    """What kohya calls a layer of the UNet."""
    return PREFIX + layer.replace(".", "_")


def kohya_state(additions: dict[str, LowRank]) -> dict[str, Tensor]:
    """The file's tensors, fp16; alpha is the rank, so that strength 1 is what was trained."""
    state = {}
    for name, addition in additions.items():
        key = kohya_key(name)
        state[f"{key}.lora_up.weight"] = addition.up.detach().half()
        state[f"{key}.lora_down.weight"] = addition.down.detach().half()
        state[f"{key}.alpha"] = torch.tensor(float(len(addition.down)))
    return state
