"""The models that a guided run differentiates: loaded together, with room, and computed again where they do not fit."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import comfy.model_management
import torch
from comfy.patcher_extension import WrappersMP

from ..progress import log
from .model import Differentiable, DoesNotFit

KEY = "steer_gradient_guidance"
LESS = "turn through_model off, or take fewer or smaller cutouts, a smaller picture or a smaller batch"


class GuidedModels:
    """The run's own model, differentiated where a loss goes `through_model`, and those that losses call, by patcher.

    `losses` is about how many bytes the losses' gradients take at the least. With `weights` there are gradients of the
    run's model's weights too. `less` is what would take less memory.
    """

    def __init__(
        self, node: str, patchers: list, through_model: bool, losses: float, weights: bool = False, less: str = LESS
    ):
        self.node, self.through_model, self.losses, self.weights = node, through_model, losses, weights
        self.less = less
        self.model: Differentiable | None = None
        self.others = {id(patcher): Differentiable(patcher) for patcher in patchers}

    def loaded_with(self, patcher):
        """The patcher to sample with: the host loads the losses' models with it, and leaves room for the gradients."""
        if self.through_model:
            self.model = Differentiable(patcher, weights=self.weights)
        patcher = self.model.patcher if self.model else patcher.clone()
        # on several GPUs the host copies the first one's additional models to the others, unless these have their own
        for part in (patcher, *patcher.get_additional_models_with_key("multigpu")):
            part.set_additional_models(KEY, [other.patcher for other in self.others.values()])
        patcher.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, KEY, self._with_room)
        return patcher

    def _with_room(self, executor, model, noise_shape, conds, *args, **kwargs):
        """The host's loading, with room for gradients whose activations are computed again: the least there can be.

        What keeping them takes is measured at the first call; by that the `Differentiable`s decide.
        """
        # a call needs room for the positive and the negative, and the backward of one block about as much again
        forward = model.model.memory_required([2 * noise_shape[0], *noise_shape[1:]])
        least = self.losses + (forward if self.through_model else 0.0)
        rows = round(noise_shape[0] * (1 + least / forward))
        loaded = executor(model, [rows, *noise_shape[1:]], conds, *args, **kwargs)
        free = comfy.model_management.get_free_memory(model.load_device)
        if self.losses > free:
            raise ValueError(
                f"{self.node}: about {self.losses / 2**30:.2f} GiB of memory are needed for the gradients of the loss "
                f"and {free / 2**30:.2f} are free; {self.less}"
            )
        return loaded

    def computed(self, node: str, compute: Callable):
        """What `compute` returns; errors of too little memory say what would help, in the name of the node."""
        with memory_advice(node, self.less):
            return self._again_where_it_did_not_fit(compute)

    def _again_where_it_did_not_fit(self, compute: Callable):
        """What `compute` returns. Where memory runs out it is called once more, with activations computed again."""
        try:
            return compute()
        except comfy.model_management.OOM_EXCEPTION as error:
            models = [*self.others.values(), *([self.model] if self.model else ())]
            keeping = [model for model in models if not model.recompute]
            if not keeping or not isinstance(error, torch.OutOfMemoryError):
                raise
        for model in keeping:  # here the error is freed, with the part of the graph that it held
            model.recompute = True
        log.info("the way back does not fit: what a call computes is not kept, but computed again")
        comfy.model_management.soft_empty_cache()
        return compute()


@contextmanager
def memory_advice(node: str, less: str) -> Iterator[None]:
    """Errors of too little memory, with what would help."""
    try:
        yield
    except DoesNotFit as error:
        raise ValueError(f"{node}: {error}; {less}") from error
    except comfy.model_management.OOM_EXCEPTION as error:
        if not isinstance(error, torch.OutOfMemoryError):
            raise
        raise type(error)(f"{node}: the gradients do not fit into memory; {less}. ({error})") from error
