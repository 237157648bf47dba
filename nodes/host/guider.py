"""GUIDERs of Steer: what each checks and changes before the host samples, and classifier-free guidance."""

from typing import Any, NamedTuple

import comfy.model_management
import comfy.samplers
import node_helpers
from torch import Tensor

from ...samplers.guidance import branch_weights, cfg_with_empty
from .checks import check_given
from .errors import errors_of
from .guiders import (
    CheckedGuider,
    patches_read_order,
    patches_read_predictions,
    patches_wrap_predictions,
    without_guidance_patches,
)
from .law import window_of
from .masks import fitted_noise_mask
from .progress import tell_empty
from .sampler import RunSampler, checked_sampler


def guidance_of(guider, model_options: dict) -> str:
    """What a run does beside predicting by one prompt, for a report; "" where it does nothing, as at cfg 1."""
    while isinstance(guider, CheckedGuider):
        guider = guider._guider
    kind = type(guider)
    if kind is not SteerCFG and getattr(kind, "predict_noise", None) is not comfy.samplers.CFGGuider.predict_noise:
        return f"the guider ({kind.__name__}) guides in a way of its own"
    if guider.cfg > 1.0:
        return f"the guider is at cfg {guider.cfg:g}"
    if "empty" in guider.conds and guider.negative_scale > 0.0:
        return f"the guider is at negative_scale {guider.negative_scale:g}"
    if patches_read_predictions(model_options):
        return "a patch on the model changes guidance"
    if patches_wrap_predictions(guider.model_patcher):
        return "a patch on the model may set another cfg (CFG Override, for example)"
    return ""


def plain_guider(model, conds: dict[str, list]) -> comfy.samplers.CFGGuider:
    """The host's guider of these conditionings, by name."""
    guider = comfy.samplers.CFGGuider(model)
    guider.inner_set_conds(conds)
    return guider


class SampleCall(NamedTuple):
    """What the host calls a guider's `sample` with, in its order, as far as methods change it."""

    noise: Tensor
    latent_image: Tensor
    sampler: object
    sigmas: Tensor
    denoise_mask: Tensor | None


class RunGuider:
    """A GUIDER of Steer: the one place that overrides a guider's `sample`. Mixed in before the host's class."""

    node: str
    model_patcher: Any
    fits_masks = True
    """Each picture has a mask of its own, as `WrappedGuider` declares it: they are fitted here."""

    def sample(self, noise, latent_image, sampler, sigmas, denoise_mask=None, *args, **kwargs):
        with errors_of(self.node):
            check_given(self.model_patcher.model, sigmas, latent_image, denoise_mask)
            mask = fitted_noise_mask(denoise_mask, latent_image)
            guider, call = self.prepared(SampleCall(noise, latent_image, sampler, sigmas, mask))
        if type(guider) is not type(self):
            return guider.sample(*call, *args, **kwargs)
        # the host's class, mixed in behind, has a `sample`
        run = super(RunGuider, guider).sample  # pyright: ignore[reportAttributeAccessIssue]
        return self.given_out(run(*call, *args, **kwargs))

    def given_out(self, samples: Tensor) -> Tensor:
        """What of the latents that were sampled the run gives."""
        return samples

    def checked(self, call: SampleCall) -> SampleCall:
        """The same with a look at what its SAMPLER is given, and at each estimate."""
        return call._replace(sampler=checked_sampler(self.node, call.sampler))

    def prepared(self, call: SampleCall) -> tuple[Any, SampleCall]:
        """The guider that samples, itself or a copy or another, and what with. ValueError for what it cannot run on."""
        raise NotImplementedError


class SteerCFG(RunGuider, comfy.samplers.CFGGuider):
    """The host's CFGGuider with an interval, a third conditioning, and its input checked before anything runs."""

    def __init__(self, node: str, model, cfg: float, negative_scale: float, interval: tuple[float, float]):
        comfy.samplers.CFGGuider.__init__(self, model)
        self.node, self.cfg, self.negative_scale = node, cfg, negative_scale
        self.window = window_of(model, interval)

    def set_conds(self, positive, negative, empty=None):
        conds = {"positive": positive, "negative": negative}
        if empty is not None:
            conds["empty"] = node_helpers.conditioning_set_values(empty, {"prompt_type": "negative"})
        self.inner_set_conds(conds)

    def prepared(self, call: SampleCall) -> tuple[Any, SampleCall]:
        if "empty" in self.original_conds and "sampler_cfg_function" in self.model_options:
            raise ValueError(
                "the model has a patch that replaces the CFG formula (such as RescaleCFG), and `empty` asks for "
                "another one; disconnect `empty` or remove the patch"
            )
        mask = call.denoise_mask
        keeps = isinstance(call.sampler, RunSampler) and call.sampler.masks_itself
        changed = keeps or "denoise_mask_function" in self.model_options
        if mask is not None and not mask.is_nested and not changed:
            tell_empty(self.node, "noise mask", mask, "the picture stays as it is")
        return self, self.checked(call)

    def predict_noise(self, x, timestep, model_options={}, seed=None):  # noqa: B006 (the host's signature)
        # the host looks for an interrupt between steps only, and a step may have several calls
        comfy.model_management.throw_exception_if_processing_interrupted()
        positive, negative, empty = (self.conds.get(name) for name in ("positive", "negative", "empty"))
        inside = float(timestep.max()) in self.window
        if inside and empty is not None and self.negative_scale:
            return self._three_terms([positive, empty], negative, x, timestep, model_options)
        # at cfg 1 the host leaves the unconditional out, unless a patch or a CFG++ sampler asked for it
        cfg, unconditional = self.cfg if inside else 1.0, negative if empty is None else empty
        model_options = model_options if inside else without_guidance_patches(model_options)
        if cfg == 0.0 and not patches_read_predictions(model_options):
            positive = None
        return comfy.samplers.sampling_function(
            self.inner_model, x, timestep, unconditional, positive, cfg, model_options=model_options, seed=seed
        )

    def _three_terms(self, pair, negative, x, timestep, model_options):
        """The host's guidance by the pair, positive and empty, and the negative's term besides.

        Patches and CFG++ samplers (Chung et al. 2024, arXiv:2406.08070) see the pair's predictions, the empty's as the
        unconditional one.
        """
        if not patches_read_predictions(model_options):
            weights = branch_weights(self.cfg, self.negative_scale)[::2]
            pair = [cond if weight else None for cond, weight in zip(pair, weights, strict=True)]
        args = {"input": x, "sigma": timestep, "model": self.inner_model, "model_options": model_options}
        calculate = model_options.get("sampler_calc_cond_batch_function")

        def predictions(conds: list) -> list[Tensor]:
            if calculate is not None:
                return calculate({**args, "conds": conds})
            return comfy.samplers.calc_cond_batch(self.inner_model, conds, x, timestep, model_options)

        if calculate is not None or patches_read_order(model_options):  # these know of two only
            against = predictions([None, negative])[1]
            out = predictions(pair)
        else:
            *out, against = predictions([*pair, negative])
        args.update(conds=pair, cond_scale=self.cfg, timestep=timestep)
        for patch in model_options.get("sampler_pre_cfg_function", []):
            out = patch({**args, "conds_out": out})
        denoised = cfg_with_empty(out[0], against, out[1], self.cfg, self.negative_scale)
        args.update(cond=pair[0], uncond=pair[1], cond_denoised=out[0], uncond_denoised=out[1])
        for patch in model_options.get("sampler_post_cfg_function", []):
            denoised = patch({**args, "denoised": denoised})
        return denoised
