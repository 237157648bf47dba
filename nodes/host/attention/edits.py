"""Edits of attention as faces and runs ask for them: which conditionings they are of, in which calls."""

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace
from functools import partial

from comfy.patcher_extension import WrappersMP, add_wrapper_with_key, get_wrappers_with_key
from torch import Tensor

from ....attention.edit import AttentionEdit, AttentionLook
from ....attention.layers import Policy
from ..text_columns import length_of
from .families import KNOWN, REFUSED, family_of
from .rows import EDITS, LAYERS, OwnEdits, with_hooks
from .transformer import TransformerLayers
from .unet import UNetLayers

KEY = "steer"
UNSEEN = {
    "torch_compile_kwargs": "is compiled (TorchCompileModel), and compiled attention does not notice what is edited",
    "context_handler": "has context windows, whose calls are of a part of the batch or of the frames",
}


class AttentionEdits:
    """Edits of the attention of a model, and looks at it, by conditioning; of none to begin with.

    ValueError for a model without attention that can be edited.
    """

    def __init__(self, model):
        self._layers, self._own = _layers_of(model), {}
        self.policy: Policy = self._layers.policy
        self.pairs = isinstance(self._layers, UNetLayers)
        """Whether the attention of two prompts can be exchanged in this model."""

    def on(self, conds: Sequence[dict], *edits: AttentionEdit, looks: Sequence[AttentionLook] = ()) -> "AttentionEdits":
        """These, and the same edits and looks for the rows of each of these processed conditionings."""
        more = copy(self)
        more._own = self._own | {
            cond["uuid"]: OwnEdits(edits, tuple(looks), length_of(cond["cross_attn"], cond)) for cond in conds
        }
        return more

    def options(self, model_options: dict) -> dict:
        """The model options for calls in which these edits come after those that are there.

        ValueError for a model whose layers do not see each call as it is.
        """
        for key, problem in UNSEEN.items():
            if key in model_options:
                raise ValueError(f"the model {problem}; remove that, or the attention edit")
        options = dict(model_options.get("transformer_options", {}))
        there = options.get(EDITS, {})
        both = {uuid: there[uuid].then(self._own[uuid]) for uuid in there.keys() & self._own.keys()}
        options[EDITS], options[LAYERS] = {**there, **self._own, **both}, self._layers
        if not get_wrappers_with_key(WrappersMP.APPLY_MODEL, KEY, options):
            options["wrappers"] = {kind: dict(by_key) for kind, by_key in options.get("wrappers", {}).items()}
            add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, with_hooks, options)
        # a patch (as PAG's) calls the model once more after guidance, with attention that is not the prediction's
        patches = [partial(_unwatched, patch) for patch in model_options.get("sampler_post_cfg_function", [])]
        return {**model_options, "transformer_options": options, "sampler_post_cfg_function": patches}


def _layers_of(model) -> UNetLayers | TransformerLayers:
    family = family_of(model.diffusion_model)
    name, reason = REFUSED.get(type(model.diffusion_model).__name__, ("", ""))
    if reason:
        raise ValueError(f"the model is {name}, and {reason}; the attention nodes work on {KNOWN}")
    return UNetLayers(model) if family is None else TransformerLayers(model.diffusion_model, family)


def check_pairs(model) -> None:
    """ValueError for a model in which the attention of two prompts cannot be exchanged yet: a transformer."""
    if not AttentionEdits(model).pairs:
        raise ValueError(
            f"{type(model).__name__} is a transformer, and Prompt-to-Prompt works on UNets (SD1.x, SD2.x, SDXL); on "
            "this model SteerEditGuider edits from one prompt to another, and SteerPaintWithWords places words"
        )


def _unwatched(patch: Callable, args: dict) -> Tensor:
    options = args["model_options"]["transformer_options"]
    edits = {uuid: replace(own, looks=()) for uuid, own in options.get(EDITS, {}).items()}
    return patch({**args, "model_options": {**args["model_options"], "transformer_options": {**options, EDITS: edits}}})
