"""Guiders as samplers call them, for one run: looked at, or changed by a method."""

from collections.abc import Callable
from typing import NamedTuple

import comfy.model_management
import comfy.patcher_extension
import comfy.samplers
import comfy.utils
import torch
from comfy.model_base import BaseModel
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from .checks import check_answer
from .errors import errors_of


class WrappedGuider:
    """A guider as samplers use it; what a child does not change is the guider's.

    What it declares for the methods inside it: `halves`, how many equal parts of the batch get the same noise;
    `watched`, that the model's calls are wanted even if they change nothing (its attention is recorded); `fits_masks`,
    that each picture has a mask of its own.
    """

    def __init__(self, guider, halves: int = 1, watched: bool = False, fits_masks: bool = False):
        self._guider = guider
        # the guiders of others declare nothing
        self.halves = max(halves, getattr(guider, "halves", 1))
        self.watched = watched or getattr(guider, "watched", False)
        self.fits_masks = fits_masks or getattr(guider, "fits_masks", False)

    def __getattr__(self, name):
        return getattr(self._guider, name)


class CheckedGuider(WrappedGuider):
    """A guider whose estimates are looked at: one that holds NaN ends the run, in this node's name."""

    def __init__(self, node: str, guider):
        super().__init__(guider)
        self._node = node

    def __call__(self, x, sigma, model_options={}, seed=None):  # noqa: B006 (the host's signature)
        denoised = self._guider(x, sigma, model_options=model_options, seed=seed)
        with errors_of(self._node):
            check_answer(x, denoised, sigma)
        return denoised


class ToldGuider(WrappedGuider):
    """A guider of a model that is told what is masked out, and that it has no noise: there it is shown the source.

    As in the host's own masked sampling. The methods noise it to the level of the call, as other models need it.
    """

    def __init__(self, guider, mask: Tensor, known: Tensor):
        super().__init__(guider)
        self._mask, self._known = mask, known

    def __call__(self, x, sigma, model_options={}, seed=None):  # noqa: B006 (the host's signature)
        return self._guider(self.shown(x, sigma), sigma, model_options=model_options, seed=seed)

    def shown(self, x: Tensor, sigma: Tensor) -> Tensor:
        """x with what is masked out as the model has to see it; x may be the batch several times."""
        mask, known = (comfy.utils.repeat_to_batch_size(part, len(x)) for part in (self._mask, self._known))
        scaled = self._guider.inner_model.scale_latent_inpaint
        kept = scaled(x=x, sigma=sigma, noise=torch.zeros_like(x), latent_image=known, denoise_mask=mask)
        return x * mask + kept * (1.0 - mask)


def is_told_mask(guider) -> bool:
    """Whether calls of a guider's model say that what is masked out has no noise.

    By levels of places or frames (LTX-Video, Wan 2.2 5B, Cosmos-Predict2, HunyuanVideo's guiding frame), or in a
    channel that tells where it is, and not what (Cosmos 1 with a picture). Such a model has its own
    `scale_latent_inpaint`.
    """
    model = guider.inner_model
    if type(model).scale_latent_inpaint is BaseModel.scale_latent_inpaint:
        return False
    conds = [cond["model_conds"].keys() for entries in guider.conds.values() for cond in entries]
    by_level = any({"denoise_mask", "guiding_frame_index"} & names for names in conds)
    return by_level or model.concat_keys == ("mask_inverted",)


class Call(NamedTuple):
    """A sampler's call of its guider, as a denoiser that may also be asked under other model options."""

    guider: Callable[..., Tensor]
    sigmas: Tensor
    options: dict
    seed: int | None

    def __call__(self, x: Tensor, sigma: float | None = None, options: dict | None = None) -> Tensor:
        """The guider's estimate at the level of the call, the only one that it is asked at."""
        return self.guider(x, self.sigmas, model_options=options or self.options, seed=self.seed)


class GuidedGuider(WrappedGuider):
    """A guider whose every estimate is `change(denoise, x, sigma)`, where `denoise` is a `Call` of the guider."""

    def __init__(self, guider, change: Callable[[Call, Tensor, float], Tensor], **declared):
        super().__init__(guider, **declared)
        self._change = change

    def __call__(self, x, sigma, model_options={}, seed=None):  # noqa: B006 (the host's signature)
        # the host looks for an interrupt between steps only, and a step may have several calls
        comfy.model_management.throw_exception_if_processing_interrupted()
        return self._change(Call(self._guider, sigma, model_options, seed), x, float(sigma.max()))


def without_cfg(model_options: dict) -> dict:
    """Model options with which each estimate of a call is the positive's, so that guidance by differences is none."""
    inner = model_options.get("sampler_calc_cond_batch_function")

    def calculate(args: dict) -> list[Tensor]:
        first, *others = args["conds"]
        conds = args["conds"] if first is None else [first, *[None] * len(others)]
        if inner is not None:
            out = inner({**args, "conds": conds})
        else:
            out = comfy.samplers.calc_cond_batch(
                args["model"], conds, args["input"], args["sigma"], args["model_options"]
            )
        return out if first is None else [out[0]] * len(out)

    return {**model_options, "sampler_calc_cond_batch_function": calculate}


def patches_read_predictions(model_options: dict) -> bool:
    """Whether a patch reads the predictions: then both are computed, even where guidance gives one no weight."""
    needed = "disable_cfg1_optimization", *(f"sampler_{hook}cfg_function" for hook in ("pre_", "post_", ""))
    return any(map(model_options.get, needed))


def patches_guide(model_options: dict) -> bool:
    """Whether a patch has a part in guidance: where the model is asked, on the answers, or in the formula or after it.

    It may call the model again (PAG's does), with the conditioning and the x that it is told of.
    """
    return patches_read_predictions(model_options) or bool(model_options.get("sampler_calc_cond_batch_function"))


def patches_wrap_predictions(model: ModelPatcher) -> bool:
    """Whether a patch stands round a guider's predictions, where it may set another cfg for them (CFG Override)."""
    return bool(model.get_all_wrappers(comfy.patcher_extension.WrappersMP.PREDICT_NOISE))


def without_guidance_patches(model_options: dict) -> dict:
    """The options of a call at scale 1, without the patches that change guidance before it (APG, TCFG).

    The host calls these at scale 1 too, with zeros for the negative's prediction, and they make guidance of them.
    """
    if model_options.get("disable_cfg1_optimization"):
        return model_options
    return {name: value for name, value in model_options.items() if name != "sampler_pre_cfg_function"}


def patches_read_order(model_options: dict) -> bool:
    """Whether patches of the model may read which places of a call are of the positive (0) and the negative (1)."""
    return bool(model_options.get("transformer_options", {}).keys() & {"patches", "patches_replace"})
