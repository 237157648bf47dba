"""A guider round any other, whose estimates losses change; all within one run of the host."""

from collections.abc import Callable
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import comfy.model_management
import comfy.patcher_extension
import comfy.sampler_helpers
import torch
from torch import Tensor

from ...samplers.gradient_guidance import Loss, at_top, change_by_estimate, change_by_x, limited, near_top, round_top
from ...samplers.masks import check_mask
from ...samplers.window import Window
from ..host.checks import errors_of, fitted_mask, fitted_noise_mask
from ..host.gradients.model import Differentiable, DoesNotFit, gradient_options
from ..host.gradients.tensors import gradients
from ..host.guider import RunGuider, SampleCall
from ..host.guiders import Call, WrappedGuider
from ..host.law import noise_law, window_of
from ..host.progress import log, tell_empty
from ..host.run import Run, RunSampler

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


class GradientGuider(RunGuider, WrappedGuider):
    """A GUIDER of the host or of Steer, guided by a loss too.

    Nested ones become one with several terms, which share the model's calls.
    """

    def __init__(self, guider, term: Term):
        nested = isinstance(guider, GradientGuider)
        super().__init__(guider._guider if nested else guider)
        self.terms = (*guider.terms, term) if nested else (term,)
        self.node = term.node

    def prepared(self, call: SampleCall) -> tuple[object, SampleCall]:
        guider, shape = copy(self._guider), call.latent_image.shape
        mask = fitted_noise_mask(call.denoise_mask, call.latent_image)
        noise_law(guider.model_patcher.get_model_object("model_sampling"))
        terms = [term.fitted(call.latent_image) for term in self.terms]
        guidance = Guidance(call.sampler, tuple(term for term in terms if not term.nothing_to_do()))
        if guidance.terms:
            guider.model_patcher = guidance.loaded_with(guider.model_patcher, tuple(shape))
        sampler = RunSampler(self.node, guidance, call.sampler)
        return guider, call._replace(sampler=sampler, denoise_mask=mask)


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


class Acting(NamedTuple):
    """A term of one run."""

    term: Term
    loss: Loss
    run: Run
    """With the term's mask."""


class Guidance:
    """Another SAMPLER, whose every estimate is changed by the losses that act at its level: the method of one run."""

    def __init__(self, sampler, terms: tuple[Term, ...]):
        self.sampler, self.terms = sampler, terms
        self._model: Differentiable | None = None
        self._others = {id(each): Differentiable(each) for term in terms for each in term.loss.patchers}
        self._acting: list[Acting] = []

    def loaded_with(self, patcher, shape: tuple[int, ...]):
        """The patcher to sample with: the host loads the losses' models with it, and room for their gradients."""
        through = any(term.differentiates_model for term in self.terms)
        if through:
            self._model = Differentiable(patcher)
        patcher = self._model.patcher if through else patcher.clone()
        # the host would copy what only the first of several GPUs has beside its model to the others too
        for each in (patcher, *patcher.get_additional_models_with_key("multigpu")):
            each.set_additional_models(KEY, [other.patcher for other in self._others.values()])
        room = _Room(self.terms, through, shape)
        patcher.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.PREPARE_SAMPLING, KEY, room)
        return patcher

    def __call__(self, run: Run) -> Tensor:
        self._acting = [self._started(term, run) for term in self.terms]
        return run.sample(self.sampler, self.change, fits_masks=True)

    def _started(self, term: Term, run: Run) -> Acting:
        with errors_of(term.node):
            assert run.sigmas and run.law
            if term.differentiates_model:
                run.check_every_call()
            mask = None
            if term.mask is not None:
                noise = run.start_noise
                mask = comfy.sampler_helpers.prepare_mask(term.mask, noise.shape, noise.device)[:, :1].float()
            run = run.under(term.node, mask)
            loss = term.loss.start(run, run.model.latent_format, lambda patcher: self._others[id(patcher)])
            return Acting(term, loss, run)

    def change(self, denoise: Call, x: Tensor, level: float) -> Tensor:
        """The estimate with what each loss changes of it."""
        acting = [item for item in self._acting if item.term.acts(level)]
        if not acting:
            return denoise(x)
        with _memory_advice(acting):
            denoised, changes = self._again_where_it_did_not_fit(lambda: self._changes(denoise, x, level, acting))
        for (term, _, run), change in zip(acting, changes, strict=True):
            denoised = denoised + limited(term.scale * change, level, run.law, term.most, run.mask).to(denoised)
        return denoised

    def _changes(self, denoise: Call, x: Tensor, level: float, acting: list[Acting]) -> tuple[Tensor, list[Tensor]]:
        """The estimate, and by how much each loss changes it at scale 1."""
        law = acting[0].run.law
        by_x = [item for item in acting if item.term.loss.noisy or item.term.through_model]
        denoised, slopes = self._by_x(denoise, x, level, by_x)
        if denoised is None:
            denoised = denoise(x)
        if by_x and at_top(level, law):
            slopes = {key: -0.5 * slope for key, slope in slopes.items()}
            for near, beside, weight in round_top(x, denoised, level, law):
                there = denoise._replace(options=told(denoise.options, beside))
                _, beyond = self._by_x(there, near, beside, by_x)
                slopes = {key: slope + weight * beyond[key] for key, slope in slopes.items()}
            level_of_slopes = near_top(law)
        else:
            level_of_slopes = level
        changes = {key: change_by_x(slope, level_of_slopes, law) for key, slope in slopes.items()}
        for item in acting:
            if id(item) not in changes:
                slope = gradient(item.term.node, item.loss, denoised, level)
                changes[id(item)] = change_by_estimate(slope, level, law)
        return denoised, [changes[id(item)] for item in acting]

    def _by_x(self, denoise: Call, x: Tensor, level: float, items: list[Acting]) -> tuple[Tensor | None, dict]:
        """The estimate, None where no loss needs it here, and the gradients by x of these items' losses, by id."""
        through = [item for item in items if item.term.differentiates_model]
        denoised, slopes = self._through_model(denoise, x, level, through) if through else (None, {})
        for item in items:
            if item.term.loss.noisy:
                slopes[id(item)] = gradient(item.term.node, item.loss, x, level)
        return denoised, slopes

    def _through_model(self, denoise: Call, x: Tensor, level: float, through: list[Acting]) -> tuple[Tensor, dict]:
        """The estimate, and the gradients by x of the losses that are differentiated through the model."""
        slopes = {}
        with gradients():
            x, options = x.detach().clone().requires_grad_(), gradient_options(denoise.options)
            denoised = self._model(lambda: denoise(x, options=options))
            if not denoised.requires_grad:
                raise ValueError(
                    f"{through[0].term.node}: a patch on the model cuts its estimate off from x, so there is no "
                    "gradient through it; turn through_model off"
                )
            for index, item in enumerate(through):
                comfy.model_management.throw_exception_if_processing_interrupted()
                back = gradient(item.term.node, item.loss, denoised, level)
                # a model in half precision loses small gradients: it gets one of unit size, which is undone after
                size = back.abs().amax(tuple(range(1, back.ndim)), keepdim=True).clamp(min=1e-30)
                (back,) = torch.autograd.grad(denoised, x, back / size, retain_graph=index + 1 < len(through))
                slopes[id(item)] = _finite(item.term.node, back * size)
            return denoised.detach(), slopes

    def _again_where_it_did_not_fit(self, compute: Callable):
        """What `compute` returns; where the memory did not last to its end, computed again with less of it kept."""
        models = [*self._others.values(), *([self._model] if self._model else ())]
        try:
            return compute()
        except comfy.model_management.OOM_EXCEPTION as error:
            keeping = [model for model in models if not model.recompute]
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
        raise ValueError(f"{acting[-1].term.node}: {error}; {LESS}") from error
    except comfy.model_management.OOM_EXCEPTION as error:
        if not isinstance(error, torch.OutOfMemoryError):
            raise
        raise type(error)(f"{acting[-1].term.node}: the gradients do not fit into memory; {LESS}. ({error})") from error


def term_of(node: str, guider, loss, scale, interval, through_model, most, mask) -> Term:
    """The term, its percents as sigmas of the guider's model."""
    return Term(node, loss, scale, window_of(guider.model_patcher, interval), through_model, most, mask)
