"""How attention edits reach the host's models: which rows are whose, and the hook at each attention layer.

Edits ride in `transformer_options` by conditioning (uuid), and one wrapper round the model call installs them, on top
of whatever patches that call already has: nothing is left on the model, and the order of patch nodes does not matter.
"""

from collections.abc import Callable
from functools import partial

from comfy.patcher_extension import WrappersMP, add_wrapper_with_key, get_wrappers_with_key
from torch import Tensor

from ..checks import check_given
from ..errors import errors_of
from ..sampler import checked_sampler
from .edits import EDITS, KEY, SITES, Edits, Transform, edits_of
from .unet import attention_sites, with_hooks

UNSEEN = {
    "torch_compile_kwargs": "is compiled (TorchCompileModel), and compiled attention does not notice what is edited",
    "context_handler": "has context windows, whose calls are of a part of the batch or of the frames",
}


def with_edits(model_options: dict, sites: tuple, edits: dict[object, Edits]) -> dict:
    """The model options for calls in which the rows of these conditionings (by uuid) are edited, too.

    ValueError for a model whose layers do not see each call as it is.
    """
    for key, problem in UNSEEN.items():
        if key in model_options:
            raise ValueError(f"the model {problem}; remove that, or the attention edit")
    options = dict(model_options.get("transformer_options", {}))
    there = options.get(EDITS, {})
    both = {
        uuid: Edits(_in_order(there[uuid].transforms + edits[uuid].transforms), edits[uuid].tokens)
        for uuid in there.keys() & edits.keys()
    }
    options[EDITS], options[SITES] = {**there, **edits, **both}, sites
    if not get_wrappers_with_key(WrappersMP.APPLY_MODEL, KEY, options):
        options["wrappers"] = {kind: dict(by_key) for kind, by_key in options.get("wrappers", {}).items()}
        add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, with_hooks, options)
    return {**model_options, "transformer_options": options}


def with_patches_unwatched(model_options: dict) -> dict:
    """The model options for calls in which what only looks at attention does not see a patch's own (as PAG's) calls.

    Such a patch calls the model once more after guidance, with attention that is not the prediction's.
    """
    patches = model_options.get("sampler_post_cfg_function", [])
    return {**model_options, "sampler_post_cfg_function": [partial(_unwatched, patch) for patch in patches]}


def _unwatched(patch: Callable, args: dict) -> Tensor:
    options = args["model_options"]["transformer_options"]
    edits = {
        uuid: Edits(tuple(each for each in transforms if not each.looks), tokens)
        for uuid, (transforms, tokens) in options.get(EDITS, {}).items()
    }
    return patch({**args, "model_options": {**args["model_options"], "transformer_options": {**options, EDITS: edits}}})


def _in_order(transforms: tuple[Transform, ...]) -> tuple[Transform, ...]:
    return tuple(sorted(transforms, key=lambda transform: transform.looks))


def with_marked_edits(
    model,
    node: str,
    mark: str,
    transform_of: Callable[[object], Transform | None],
    check: Callable[[list[dict], Tensor, Tensor], None],
    once: bool = False,
):
    """A clone of the model that edits the rows of every conditioning with this mark, in whatever guider it runs.

    `transform_of(marked value)` is asked at each model call; `check(marked conditionings, noise, sigmas)` once,
    before the first. With `once` a model that has this node's edits already is only cloned.
    """
    if once and model.get_wrappers(WrappersMP.OUTER_SAMPLE, node):
        return model.clone()
    sites = attention_sites(model.model)

    def before(executor, noise, latent_image, sampler, sigmas, *args, **kwargs):
        conds = [cond for conds in executor.class_obj.conds.values() for cond in conds]
        marked = [cond for cond in conds if mark in cond and transform_of(cond[mark])]
        with errors_of(node):
            if not marked:
                raise ValueError(
                    "no conditioning of this run belongs to this patch; connect the CONDITIONING that was made for it "
                    "to the guider"
                )
            check_given(executor.class_obj.model_patcher.model, sigmas, latent_image, None)
            check(marked, noise, sigmas)
        return executor(noise, latent_image, checked_sampler(node, sampler), sigmas, *args, **kwargs)

    def during(executor, model, conds, x_in, timestep, model_options):
        edits = {}
        for cond in (cond for part in conds if part for cond in part if mark in cond):
            transform = transform_of(cond[mark])
            if transform is not None:
                edits |= edits_of([cond], transform)
        with errors_of(node):
            options = with_edits(model_options, sites, edits) if edits else model_options
        return executor(model, conds, x_in, timestep, options)

    model = model.clone()
    model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, node, before)
    model.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, node, during)
    return model
