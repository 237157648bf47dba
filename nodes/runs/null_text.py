"""The two branches of a guided prediction apart, inside a run of the host, for null-text optimization."""

from collections.abc import Callable

import comfy.model_management
import comfy.samplers
import torch
from torch import Tensor

from ...samplers.inversion import Inversion
from ..host.checks import check_answer, check_every_call, check_ready
from ..host.conditioning import same
from ..host.gradients.model import Differentiable, gradient_options
from ..host.guider import read_by_patches


class Branches:
    """The predictions of one run apart: the positive's, and the negative's under embeddings that can be differentiated.

    Made by the host's own processing of conditionings, so that ControlNets, masks and LoRA hooks act as in sampling.
    """

    def __init__(self, guider, model_options: dict, differentiable: Differentiable):
        self._model, self._conds, self._options = guider.inner_model, guider.conds, model_options
        self._gradient_options, self._differentiable = gradient_options(model_options), differentiable

    def embedding(self, batch: int) -> Tensor:
        """The negative's (batch, tokens, channels), float32; ValueError where the model does not use it as given."""
        (entry,) = self._conds["negative"]
        context, given = entry["model_conds"].get("c_crossattn"), entry.get("cross_attn")
        if context is None or given is None or not same(context.cond, given):
            raise ValueError(
                f"{type(self._model).__name__} does not use its text embedding as it is given, so there is nothing to "
                "optimise; models of the SD1.x, SD2.x, SDXL and SD3 kind work"
            )
        given = given.to(self._differentiable.patcher.load_device, torch.float32)
        return given.repeat(batch // given.shape[0], 1, 1)

    def conditional(self, x: Tensor, sigma: float) -> Tensor:
        denoised = self._predict([self._conds["positive"]], x, sigma, self._options)
        check_answer(x, denoised, x.new_tensor(sigma))
        return denoised

    def unconditional(self, x: Tensor, sigma: float, embedding: Tensor) -> Tensor:
        """To be called inside `gradients`."""
        (entry,) = self._conds["negative"]
        context = entry["model_conds"]["c_crossattn"]._copy_with(embedding)
        entry = {**entry, "model_conds": {**entry["model_conds"], "c_crossattn": context}}
        # in the second place, by which patches tell the negative
        return self._differentiable(lambda: self._predict([None, [entry]], x, sigma, self._gradient_options))

    def _predict(self, conds: list[list[dict] | None], x: Tensor, sigma: float, options: dict) -> Tensor:
        """Of the last of the conditionings."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        sigmas = x.new_full((x.shape[0],), sigma)
        return comfy.samplers.calc_cond_batch(self._model, conds, x, sigmas, options)[-1]


class _WithBranches(comfy.samplers.Sampler):
    """Not a sampler, but what to do where the host samples: with models loaded and conditionings processed."""

    def __init__(self, work: Callable[[Branches], None], differentiable: Differentiable):
        self.work, self.differentiable = work, differentiable

    def sample(
        self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False
    ):
        check_ready(model_wrap, sigmas, latent_image, noise, denoise_mask)
        self.work(Branches(model_wrap, extra_args["model_options"], self.differentiable))
        return latent_image


def check_guidance(model) -> None:
    """ValueError for a model whose guidance is not the plain one, or not of every step, which the search counts on."""
    check_every_call(model.model_options)
    if read_by_patches(model.model_options):
        raise ValueError(
            "the model has a patch that changes guidance (such as PAG, SAG or RescaleCFG), which the search does not "
            "know of; remove it here and where the result is sampled with"
        )


def with_branches(model, positive, negative, inversion: Inversion, work: Callable[[Branches], None]) -> None:
    """Calls `work` once, inside a run of the host on the model and the two conditionings; the model stays as it is."""
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)  # for LoRA hooks, the host may take another copy of the model
    differentiable = Differentiable(guider.model_patcher)
    guider.model_patcher = differentiable.patcher
    # the models' own preparation looks at the latent (inpainting models take the picture from it)
    source = model.get_model_object("latent_format").process_out(inversion.latents[-1])
    guider.sample(
        torch.zeros_like(source), source, _WithBranches(work, differentiable), torch.tensor(inversion.sigmas),
        disable_pbar=True, seed=0,
    )  # fmt: skip
