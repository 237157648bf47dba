"""Edits that ride on conditionings: a patched model edits what it finds marked, in whatever guider it runs."""

from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ....attention.edit import AttentionEdit
from ..checks import check_given
from ..errors import errors_of
from ..sampler import checked_sampler
from .edits import AttentionEdits


class Mark:
    """What conditionings carry under a key of their own, through whatever nodes they go, and what it stands for."""

    key: str

    def edit(self, value) -> AttentionEdit | None:
        """The edit that a marked conditioning asks for; None where the mark is not this patch's. Asked at each call."""
        raise NotImplementedError

    def check(self, conds: list[dict], noise: Tensor, sigmas: Tensor) -> None:
        """ValueError, before the first model call, for conditionings with this patch's mark that cannot be edited."""
        raise NotImplementedError


def with_marked_edits(model, node: str, mark: Mark, once: bool = False):
    """A clone of the model that edits the rows of every conditioning with this mark.

    With `once` a model that has this node's edits already is only cloned.
    """
    if once and model.get_wrappers(WrappersMP.OUTER_SAMPLE, node):
        return model.clone()
    edits = AttentionEdits(model.model)

    def marked(conds) -> list[dict]:
        return [cond for part in conds if part for cond in part if mark.key in cond and mark.edit(cond[mark.key])]

    def before(executor, noise, latent_image, sampler, sigmas, *args, **kwargs):
        conds = marked(executor.class_obj.conds.values())
        with errors_of(node):
            if not conds:
                raise ValueError(
                    "no conditioning of this run belongs to this patch; connect the CONDITIONING that was made for it "
                    "to the guider"
                )
            check_given(executor.class_obj.model_patcher.model, sigmas, latent_image, None)
            mark.check(conds, noise, sigmas)
        return executor(noise, latent_image, checked_sampler(node, sampler), sigmas, *args, **kwargs)

    def during(executor, model, conds, x_in, timestep, model_options):
        ours = edits
        for cond in marked(conds):
            edit = mark.edit(cond[mark.key])
            ours = ours if edit is None else ours.on([cond], edit)
        if ours is not edits:
            with errors_of(node):
                model_options = ours.options(model_options)
        return executor(model, conds, x_in, timestep, model_options)

    model = model.clone()
    model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, node, before)
    model.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, node, during)
    return model
