"""The host's LORA_MODEL: which layers of a model it can change, and how what was fitted is written."""

import comfy.lora
import torch
from torch import Tensor

from .gradients.weights import LowRank, host_layers


def layers_of(model) -> list[str]:
    """The layers of the network, by name, that the host loads a LoRA into; ValueError where there is none.

    What another pack has quantised in a way of its own (GGUF) is none: its layers do not say how they compute.
    """
    keys = comfy.lora.model_lora_keys_unet(model.model, {})
    loaded = [name for name, _ in host_layers(model.model) if keys.get(name) == f"{name}.weight"]
    layers = [name for name in loaded if _can_be_fitted(model.model.get_parameter(f"{name}.weight"))]
    if not layers:
        raise ValueError(
            f"the model ({type(model.model).__name__}) has no weights that a LoRA of ComfyUI can change and gradients "
            "can reach; load it without another pack's quantisation (GGUF)"
        )
    return layers


def _can_be_fitted(weight: torch.nn.Parameter) -> bool:
    return weight.ndim > 1 and type(weight.data).__module__.partition(".")[0] in ("torch", "comfy", "comfy_kitchen")


def lora_of(fitted: dict[str, LowRank]) -> dict[str, Tensor]:
    """The LORA_MODEL, at strength 1 what was fitted: float32, on the CPU, named as the host's trainer names it."""
    with torch.inference_mode(False):
        weights = ((name, kind, getattr(pair, kind)) for name, pair in fitted.items() for kind in ("up", "down"))
        return {f"{name}.lora_{kind}.weight": weight.detach().cpu().clone() for name, kind, weight in weights}
