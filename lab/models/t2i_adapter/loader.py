"""Teaches ComfyUI's stock ControlNetLoader the shapes T2I-Adapter, whose levels it cannot tell from a file.

The host takes every adapter for one of four levels that are each two blocks long.
"""

from collections.abc import Callable

import comfy.controlnet
from comfy.t2i_adapter.adapter import Adapter
from torch import Tensor

from ..host_functions import is_marked, wrap

CHANNELS = [64, 128]  # of the UNet's two levels
SQUARE = 64  # pixels that become channels
MARK = "conv_in.weight", (CHANNELS[0], SQUARE, 3, 3)


class ShapesAdapter(Adapter):
    """The host's adapter with two levels; what each gives is added where that level of the UNet ends."""

    def __init__(self):
        super().__init__(CHANNELS, nums_rb=2, cin=SQUARE, sk=True, use_conv=False, xl=False)

    def forward(self, x: Tensor) -> dict[str, list[Tensor | None]]:
        given = super().forward(x)["input"]  # the host takes from the end: block 0 first
        fine, coarse = (feature for feature in reversed(given) if feature is not None)
        return {"input": [coarse, None, fine, None]}


def register() -> None:
    """Make the host's loader know the adapter; doing so again changes nothing."""
    wrap(comfy.controlnet, "load_t2i_adapter", _loader)


def _loader(host: Callable) -> Callable:
    def load(t2i_data, *args, **kwargs):
        return _adapter(t2i_data) if is_marked(t2i_data, MARK) else host(t2i_data, *args, **kwargs)

    return load


def _adapter(state: dict[str, Tensor]) -> comfy.controlnet.T2IAdapter:
    network = ShapesAdapter()
    network.load_state_dict(state)
    return comfy.controlnet.T2IAdapter(network, network.input_channels, 8, "nearest-exact")
