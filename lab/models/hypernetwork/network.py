"""A hypernetwork as the host's HypernetworkLoader runs it: small networks before the keys and values of attention.

For each width of what attention reads, a residual network for keys and one for values, in every layer of that width.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ...weights import HYPERNETWORK

FILE = "shapes_hypernetwork.pt"  # what the host's loader takes: it reads no safetensors
INDICES = KEYS, VALUES = range(2)
ACTIVATION = "relu"


class Hypernetwork(nn.Module):
    """k + keys(k), v + values(v), where both networks start at zero; a patch of attention, as the host calls it."""

    def __init__(self, widths: list[int]):
        super().__init__()
        self.parts = nn.ModuleDict({str(width): nn.ModuleList(map(_part, [width] * 2)) for width in widths})

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, _options: dict) -> tuple[Tensor, Tensor, Tensor]:
        keys, values = self.parts[str(k.shape[-1])]
        return q, k + keys(k), v + values(v)

    def options(self) -> dict:
        """The transformer options of a model with it."""
        return {"patches": {"attn1_patch": [self], "attn2_patch": [self]}}


def write_hypernetwork(folder: Path, state: dict[str, Tensor] | None = None) -> Path:
    """Write what HypernetworkLoader takes into the folder, of a network's state or of the one kept here; its path."""
    path = folder / FILE
    torch.save(host_state(load_file(HYPERNETWORK) if state is None else state), path)
    return path


def host_state(state: dict[str, Tensor]) -> dict:
    """A `Hypernetwork`'s state as the host reads it: by width, the layers for keys and those for values."""
    widths = sorted({int(key.split(".")[1]) for key in state})
    return {"activation_func": ACTIVATION} | {
        width: tuple(_layers(state, f"parts.{width}.{index}.") for index in INDICES) for width in widths
    }


def _layers(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    names = [key for key in state if key.startswith(prefix)]
    return {f"linear.{key.removeprefix(prefix)}": state[key].float() for key in names}


def _part(width: int) -> nn.Sequential:
    part = nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))
    nn.init.zeros_(part[2].weight)
    nn.init.zeros_(part[2].bias)
    return part
