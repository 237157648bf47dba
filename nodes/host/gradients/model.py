"""Gradients through the host's models, also from inference mode, with activations recomputed where they do not fit.

The models stay unchanged: what a run needs of its own lives in the context `gradients` and in a clone of the patcher.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

import comfy.model_management
import comfy.model_patcher
import torch
from comfy.ldm.modules.attention import attention_pytorch
from torch import Tensor

from ..attention.override import with_back_end
from ..progress import log
from .recompute import recomputed, recomputed_with_weights, recomputing
from .tensors import GraphTooLarge, graph_within
from .weights import LowRank, low_rank, own_weights


class DoesNotFit(ValueError):
    """There is too little memory to differentiate a model in any way."""


class Differentiable:
    """A model patcher's model (a model, a VAE, a CLIP vision) as it is called inside `gradients`.

    `patcher` is a clone to load and run instead of the given one. There each weight goes through `_usable`, so that
    autograd can keep it, and so that layers with quantised arithmetic compute in full. The weights themselves are
    shared and stay as they are.
    Where the activations do not fit they are not kept, and computed again block by block. `recompute` says whether
    they are; it is None before the first call, and stays True from the first that does not fit on. `needed` is how many
    bytes it took to keep them. With `weights` there are gradients of weights too.
    """

    def __init__(self, patcher, recompute: bool | None = None, weights: bool = False):
        self.patcher, self.recompute, self.weights = patcher.clone(), recompute, weights
        self.needed = 0
        self.patcher.remove_additional_models("multigpu")  # the host's worker threads record no gradients
        for name, layer in self.patcher.model.named_modules():
            if hasattr(layer, "weight_function"):  # the host's layers; others use their weights as they are
                for kind in ("weight", "bias"):
                    if getattr(layer, kind, None) is not None:
                        self.patcher.add_weight_wrapper(f"{name}.{kind}", partial(_usable, layer, kind))

    def __call__(self, call: Callable):
        """What `call()` returns, a function that calls the model. `DoesNotFit` where not even the blocks' inputs do."""
        if not self.recompute:
            result = self._kept(call)
            if result is None and self._make_room():
                result = self._kept(call)
            if result is not None:
                if self.recompute is None:
                    log.info("the gradients through %s take %.2f GiB of memory", self._name, self.needed / 2**30)
                self.recompute = False
                return result
            log.info("the activations of %s do not fit: they are computed again on the way back", self._name)
            self.recompute = True
        free = comfy.model_management.get_free_memory(self.patcher.load_device)
        try:
            with recomputing(self.patcher.model, recomputed_with_weights if self.weights else recomputed):
                with graph_within(free, self.patcher.model):
                    return call()
        except GraphTooLarge:
            raise DoesNotFit(
                f"the gradients through {self._name} need more than the {free / 2**30:.2f} GiB of memory that are "
                "free, even where activations are computed again block by block"
            ) from None

    @staticmethod
    def options(model_options: dict) -> dict:
        """The model options for calls inside `gradients`: attention that has a backward."""
        return with_back_end(model_options, attention_pytorch)

    def own_weights(self) -> AbstractContextManager[dict[str, torch.nn.Parameter]]:
        """Inside, the model computes with copies of its weights, by name, which can be fitted."""
        return own_weights(self.patcher.model)

    def low_rank(self, layers: list[str], rank: int, seed: int) -> AbstractContextManager[dict[str, LowRank]]:
        """Inside, a LoRA is added to the weights of these layers, by name, which can be fitted; zero at first."""
        return low_rank(self.patcher.model, layers, rank, seed, self.patcher.load_device)

    @property
    def _name(self) -> str:
        return type(self.patcher.model).__name__

    def _kept(self, call: Callable):
        """What `call()` returns, its activations kept; None where they do not fit."""
        free = comfy.model_management.get_free_memory(self.patcher.load_device)
        try:
            with graph_within(free, self.patcher.model) as count:
                result = call()
            self.needed = count.needed
            return result
        except (GraphTooLarge, comfy.model_management.OOM_EXCEPTION):
            pass
        comfy.model_management.soft_empty_cache()  # here the error is freed, with the tensors that it held
        return None

    def _make_room(self) -> bool:
        """Whether the host could unload models that this run does not use."""
        management, device = comfy.model_management, self.patcher.load_device
        if management.is_device_cpu(device):
            return False
        used = [loaded for loaded in management.current_loaded_models if loaded.currently_used]
        return bool(management.free_memory(1e30, device, keep_loaded=used))


def _usable(layer: torch.nn.Module, kind: str, weight: Tensor, **_) -> Tensor:
    """The weight as autograd can keep it: not an inference tensor, nor in a buffer for the next offloaded layer."""
    # `_PlainTensors` has nothing to do here, and would look at each attribute of each weight
    with torch._C.DisableTorchFunction():
        own, changes = getattr(layer, kind).data, getattr(layer, f"{kind}_function", ())
        if type(own) is Tensor and len(changes) == 1 and (own.device, own.dtype) == (weight.device, weight.dtype):
            shared = torch.empty(0, dtype=own.dtype, device=own.device)
            return shared.set_(own.untyped_storage(), own.storage_offset(), own.shape, own.stride())
        return weight.detach().clone()


def patcher_of(network: torch.nn.Module) -> comfy.model_patcher.ModelPatcher:
    """The host's patcher of a network that is not the host's, the same one each time."""
    # kept with the network: the host reports a network whose patcher is gone as a memory leak
    if not hasattr(network, "steer_patcher"):
        management = comfy.model_management
        network.steer_patcher = comfy.model_patcher.ModelPatcher(
            network, management.get_torch_device(), management.unet_offload_device()
        )
    return network.steer_patcher
