"""A guider round any other, whose estimates losses change; all within one run of the host."""

from collections.abc import Callable
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, replace
from typing import Protocol

import comfy.model_management
import comfy.model_patcher
import comfy.patcher_extension
import comfy.sampler_helpers
import comfy.samplers
import torch
from torch import Tensor

from ...samplers.gradient_guidance import Loss, at_top, change_by_estimate, change_by_x, limited, near_top, round_top
from ...samplers.masks import check_mask
from ...samplers.window import Window
from ..host.checks import check_every_call, check_given, errors_of, fitted_mask, fitted_noise_mask
from ..host.gradients.model import Differentiable, DoesNotFit, gradient_options
from ..host.gradients.tensors import gradients
from ..host.law import noise_law, window_of
from ..host.progress import log, tell_empty
from ..host.run import CheckedGuider, Run, WrappedGuider, checked_run

KEY = "steer_gradient_guidance"


class SteerLossValue(Protocol):
    """What is on a STEER_LOSS wire: finished and immutable."""

    noisy: bool
    """Whether the loss reads the noisy x, not the denoised estimate."""

    @property
    def patchers(self) -> tuple:
        """The host's patchers of the models it calls, which are to be loaded beside the diffusion model."""

    def memory(self, shape: tuple[int, ...]) -> float:
        """About how many bytes the loss and its gradient take for latents of this shape, at the least."""

    def start(self, run: Run, latent_format, differentiable: Callable) -> Loss:
        """The loss for one run, on latents in model space; `differentiable(patcher)` are its loaded models.

        ValueError for a run that it cannot judge.
        """


@dataclass(frozen=True)
class Term:
    """A loss with all that says how it guides."""

    node: str
    loss: SteerLossValue
    scale: float
    window: Window
    through_model: bool
    most: float
    mask: Tensor | None

    def acts(self, sigma: float) -> bool:
        return self.scale != 0.0 and sigma in self.window

    def fitted(self, latent: Tensor) -> "Term":
        """With the mask as the latent's; ValueError for one that cannot be."""
        if self.mask is None:
            return self
        with errors_of("mask"):
            check_mask(self.mask)
            return replace(self, mask=fitted_mask(self.mask, latent))

    def nothing_to_do(self) -> bool:
        """Whether a fitted mask is empty; says so, and of a batch for which pictures."""
        return self.mask is not None and tell_empty(self.node, "mask", self.mask, "the loss steers nothing")

    @property
    def differentiates_model(self) -> bool:
        return self.through_model and not self.loss.noisy


class GradientGuider(WrappedGuider):
    """A GUIDER of the host or of Steer, guided by a loss too.

    Nested ones become one with several terms, which share the model's calls.
    """

    def __init__(self, guider, term: Term):
        nested = isinstance(guider, GradientGuider)
        super().__init__(guider._guider if nested else guider)
        self.terms = (*guider.terms, term) if nested else (term,)

    def sample(self, noise, latent_image, sampler, sigmas, denoise_mask=None, *args, **kwargs):
        guider = copy(self._guider)
        with errors_of(self.terms[-1].node):
            check_given(guider.model_patcher.model, sigmas, latent_image, denoise_mask)
            denoise_mask = fitted_noise_mask(denoise_mask, latent_image)
            noise_law(guider.model_patcher.get_model_object("model_sampling"))
            terms = [term.fitted(latent_image) for term in self.terms]
        terms = tuple(term for term in terms if not term.nothing_to_do())
        if not terms:
            guided = GuidedSampler(self.terms[-1].node, sampler, (), None, {})
            return guider.sample(noise, latent_image, guided, sigmas, denoise_mask, *args, **kwargs)
        model = Differentiable(guider.model_patcher)
        through = any(term.differentiates_model for term in terms)
        guider.model_patcher = patcher = model.patcher if through else guider.model_patcher.clone()
        others = {id(each): Differentiable(each) for term in terms for each in term.loss.patchers}
        # the host would copy what only the first of several GPUs has beside its model to the others too
        for each in (patcher, *patcher.get_additional_models_with_key("multigpu")):
            each.set_additional_models(KEY, [other.patcher for other in others.values()])
        room = _Room(terms, through, latent_image.shape)
        patcher.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.PREPARE_SAMPLING, KEY, room)
        guided = GuidedSampler(self.terms[-1].node, sampler, terms, model if through else None, others)
        return guider.sample(noise, latent_image, guided, sigmas, denoise_mask, *args, **kwargs)


class _Room:
    """Makes the host load the models with room for the gradients, and says when there is too little for the losses.

    The room is for the least there can be, where activations are computed again. How much they take is known at the
    first call, by which the `Differentiable`s decide whether to keep them.
    """

    def __init__(self, terms: tuple[Term, ...], through_model: bool, shape):
        self.node, self.through_model = terms[-1].node, through_model
        self.losses = max(term.loss.memory(tuple(shape)) for term in terms)

    def __call__(self, executor, model, noise_shape, conds, *args, **kwargs):
        # a call needs room for the positive and the negative; the way back through one block about as much again
        forward = model.model.memory_required([2 * noise_shape[0], *noise_shape[1:]])
        least = self.losses + (forward if self.through_model else 0.0)
        rows = round(noise_shape[0] * (1 + least / forward))
        loaded = executor(model, [rows, *noise_shape[1:]], conds, *args, **kwargs)
        free = comfy.model_management.get_free_memory(model.load_device)
        if self.losses > free:
            raise ValueError(
                f"{self.node}: about {self.losses / 2**30:.2f} GiB of memory are needed for the gradients of the loss "
                f"and {free / 2**30:.2f} are free; {LESS}"
            )
        return loaded


LESS = "turn through_model off, or take fewer or smaller cutouts, a smaller picture or a smaller batch"


class GuidedSampler(comfy.samplers.Sampler):
    """Another SAMPLER, with a guider that is guided by losses too; made for one run."""

    def __init__(self, node: str, sampler: comfy.samplers.Sampler, terms, model: Differentiable | None, others: dict):
        self.node, self.sampler, self.terms, self.model, self.others = node, sampler, terms, model, others

    def sample(
        self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False
    ):
        model_wrap = CheckedGuider(self.node, model_wrap)
        model, started = model_wrap.inner_model, []
        for term in self.terms:
            with errors_of(term.node):
                run = checked_run(model_wrap, sigmas, extra_args, noise, latent_image, None, needs_mask=False)
                if term.differentiates_model:
                    check_every_call(extra_args["model_options"])
                if term.mask is not None:
                    mask = comfy.sampler_helpers.prepare_mask(term.mask, noise.shape, noise.device)
                    run = replace(run, mask=mask[:, :1].float())
                loss = term.loss.start(run, model.latent_format, lambda patcher: self.others[id(patcher)])
                started.append((term, loss, run))
        guider = GuidedGuider(model_wrap, started, self.model, list(self.others.values()))
        return self.sampler.sample(
            guider, sigmas.clone(), extra_args, callback, noise, latent_image, denoise_mask, disable_pbar
        )


class GuidedGuider(WrappedGuider):
    """A guider as samplers use it, for one run, every estimate changed by the losses that act at its level."""

    fits_masks = True

    def __init__(
        self, guider, started: list[tuple[Term, Loss, Run]], model: Differentiable | None, others: list[Differentiable]
    ):
        super().__init__(guider)
        self._started, self._model = started, model
        self._models = [*others, *([model] if model else ())]

    def __call__(self, x, sigma, model_options={}, seed=None):  # noqa: B006 (the host's signature)
        comfy.model_management.throw_exception_if_processing_interrupted()
        level = float(sigma.max())
        acting = [item for item in self._started if item[0].acts(level)]
        if not acting:
            return self._guider(x, sigma, model_options=model_options, seed=seed)
        with _memory_advice(acting):
            denoised, changes = self._again_where_it_did_not_fit(
                lambda: self._changes(x, sigma, level, model_options, seed, acting)
            )
        for (term, _, run), change in zip(acting, changes, strict=True):
            denoised = denoised + limited(term.scale * change, level, run.law, term.most, run.mask).to(denoised)
        return denoised

    def _changes(self, x, sigma, level, model_options, seed, acting) -> tuple[Tensor, list[Tensor]]:
        """The estimate, and by how much each loss changes it at scale 1."""
        law = self._started[0][2].law
        by_x = [item for item in acting if item[0].loss.noisy or item[0].through_model]
        denoised, found = self._by_x(x, sigma, level, model_options, seed, by_x)
        if denoised is None:
            denoised = self._guider(x, sigma, model_options=model_options, seed=seed)
        if by_x and at_top(level, law):
            found = {key: -0.5 * each for key, each in found.items()}
            for near, beside, weight in round_top(x, denoised, level, law):
                _, there = self._by_x(near, sigma, beside, told(model_options, beside), seed, by_x)
                found = {key: each + weight * there[key] for key, each in found.items()}
            changes = {key: change_by_x(each, near_top(law), law) for key, each in found.items()}
        else:
            changes = {key: change_by_x(each, level, law) for key, each in found.items()}
        for item in acting:
            if id(item) not in changes:
                term, loss, _ = item
                changes[id(item)] = change_by_estimate(gradient(term.node, loss, denoised, level), level, law)
        return denoised, [changes[id(item)] for item in acting]

    def _by_x(self, x, sigma, level, model_options, seed, items) -> tuple[Tensor | None, dict[int, Tensor]]:
        """The estimate, None where no loss needs it here, and the gradients by x of these items' losses, by id."""
        through = [item for item in items if item[0].differentiates_model]
        denoised, found = None, {}
        if through:
            denoised, found = self._through_model(x, sigma, level, model_options, seed, through)
        for item in items:
            if item[0].loss.noisy:
                found[id(item)] = gradient(item[0].node, item[1], x, level)
        return denoised, found

    def _through_model(self, x, sigma, level, model_options, seed, through) -> tuple[Tensor, dict[int, Tensor]]:
        """The estimate, and the gradients by x of the losses that are differentiated through the model."""
        found = {}
        with gradients():
            x, options = x.detach().clone().requires_grad_(), gradient_options(model_options)
            denoised = self._model(lambda: self._guider(x, sigma, model_options=options, seed=seed))
            if not denoised.requires_grad:
                raise ValueError(
                    f"{through[0][0].node}: a patch on the model cuts its estimate off from x, so there is no gradient "
                    "through it; turn through_model off"
                )
            for index, item in enumerate(through):
                term, loss, _ = item
                comfy.model_management.throw_exception_if_processing_interrupted()
                back = gradient(term.node, loss, denoised, level)
                # a model in half precision loses small gradients: it gets one of unit size, which is undone after
                size = back.abs().amax(tuple(range(1, back.ndim)), keepdim=True).clamp(min=1e-30)
                (back,) = torch.autograd.grad(denoised, x, back / size, retain_graph=index + 1 < len(through))
                found[id(item)] = _finite(term.node, back * size)
            return denoised.detach(), found

    def _again_where_it_did_not_fit(self, compute: Callable):
        """What `compute` returns; where the memory did not last to its end, computed again with less of it kept."""
        try:
            return compute()
        except comfy.model_management.OOM_EXCEPTION as error:
            keeping = [model for model in self._models if not model.recompute]
            if not keeping or not isinstance(error, torch.OutOfMemoryError):
                raise
        for model in keeping:  # the error is gone, and with it what it held of the graph
            model.recompute = True
        log.info("the way back does not fit: what a call computes is not kept, but computed again")
        comfy.model_management.soft_empty_cache()
        return compute()


def told(model_options: dict, sigma: float) -> dict:
    """The model options for calls in which the model is told this level; all else goes by the level of the run."""
    previous = model_options.get("model_function_wrapper")

    def wrapper(apply_model, args):
        args = {**args, "timestep": torch.full_like(args["timestep"], sigma)}
        return previous(apply_model, args) if previous else apply_model(args["input"], args["timestep"], **args["c"])

    return {**model_options, "model_function_wrapper": wrapper}


def gradient(node: str, loss: Loss, latent: Tensor, sigma: float) -> Tensor:
    """Each sample's dL/dlatent, float32."""
    with gradients():
        latent = latent.detach().clone().float().requires_grad_()
        # the sum: each sample's loss is its own, so each gets its own gradient
        (found,) = torch.autograd.grad(loss(latent, sigma).sum(), latent)
    return _finite(node, found)


def _finite(node: str, found: Tensor) -> Tensor:
    if not torch.isfinite(found).all():
        raise ValueError(
            f"{node}: the gradient holds NaN or infinite values; run the VAE or the model at a higher precision "
            "(--fp32-vae, --force-fp32), or lower the scale"
        )
    return found


@contextmanager
def _memory_advice(acting):
    """Errors of too little memory, with what would help."""
    try:
        yield
    except DoesNotFit as error:
        raise ValueError(f"{acting[-1][0].node}: {error}; {LESS}") from error
    except comfy.model_management.OOM_EXCEPTION as error:
        if not isinstance(error, torch.OutOfMemoryError):
            raise
        raise type(error)(f"{acting[-1][0].node}: the gradients do not fit into memory; {LESS}. ({error})") from error


def term_of(node: str, guider, loss, scale, interval, through_model, most, mask) -> Term:
    """The term, its percents as sigmas of the guider's model."""
    return Term(node, loss, scale, window_of(guider.model_patcher, interval), through_model, most, mask)
