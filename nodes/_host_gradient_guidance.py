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

from ..samplers.classifier import Classifier
from ..samplers.gradient_guidance import Loss, change_by_estimate, change_by_x, limited
from ..samplers.masks import check_mask
from ._host import CheckedGuider, Run, WrappedGuider, checked_run, log, noise_law, tell_empty
from ._host_attention import sigma_at
from ._host_checks import check_every_call, check_given, errors_of, fitted_mask, fitted_noise_mask
from ._host_gradients import Differentiable, gradient_options, gradients

KEY = "steer_gradient_guidance"


class SteerLossValue(Protocol):
    """What is on a STEER_LOSS wire: finished and immutable."""

    noisy: bool
    """Whether the loss reads the noisy x, not the denoised estimate."""

    @property
    def patchers(self) -> tuple:
        """The host's patchers of the models it calls, which are to be loaded beside the diffusion model."""

    def memory(self, shape: tuple[int, ...]) -> float:
        """About how many bytes the loss and its gradient take for latents of this shape."""

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
    first: float
    """The highest sigma guided, and `last` the lowest."""
    last: float
    through_model: bool
    most: float
    mask: Tensor | None

    def acts(self, sigma: float) -> bool:
        return self.scale != 0.0 and self.last <= sigma <= self.first

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
            guided = GuidedSampler(sampler, (), None, {})
            return guider.sample(noise, latent_image, guided, sigmas, denoise_mask, *args, **kwargs)
        model = Differentiable(guider.model_patcher)
        through = any(term.differentiates_model for term in terms)
        guider.model_patcher = patcher = model.patcher if through else guider.model_patcher.clone()
        others = {id(each): Differentiable(each) for term in terms for each in term.loss.patchers}
        # the host would copy what only the first of several GPUs has beside its model to the others too
        for each in (patcher, *patcher.get_additional_models_with_key("multigpu")):
            each.set_additional_models(KEY, [other.patcher for other in others.values()])
        patcher.add_wrapper_with_key(
            comfy.patcher_extension.WrappersMP.PREPARE_SAMPLING, KEY, _Room(terms, through, latent_image.shape)
        )
        guided = GuidedSampler(sampler, terms, model if through else None, others)
        return guider.sample(noise, latent_image, guided, sigmas, denoise_mask, *args, **kwargs)


class _Room:
    """Makes the host keep memory free for the gradients when it loads the models, and says when there is too little."""

    def __init__(self, terms: tuple[Term, ...], through_model: bool, shape):
        self.node, self.through_model = terms[-1].node, through_model
        self.losses = max(term.loss.memory(tuple(shape)) for term in terms)

    def __call__(self, executor, model, noise_shape, conds, *args, **kwargs):
        # a call needs room for the positive and the negative; the way back about as much again, the activations
        # computed again block by block at the worst
        forward = model.model.memory_required([2 * noise_shape[0], *noise_shape[1:]])
        needed = forward * (2 if self.through_model else 1) + self.losses
        log.info("%s: the gradients take about %.2f GiB of memory", self.node, (needed - forward) / 2**30)
        rows = max(noise_shape[0], round(noise_shape[0] * needed / forward))
        loaded = executor(model, [rows, *noise_shape[1:]], conds, *args, **kwargs)
        free = comfy.model_management.get_free_memory(model.load_device)
        if needed > free:
            raise ValueError(
                f"{self.node}: about {needed / 2**30:.2f} GiB of memory are needed for the gradients and "
                f"{free / 2**30:.2f} are free; {LESS}"
            )
        return loaded


LESS = "turn through_model off, or take fewer or smaller cutouts, a smaller picture or a smaller batch"


class GuidedSampler(comfy.samplers.Sampler):
    """Another SAMPLER, with a guider that is guided by losses too; made for one run."""

    def __init__(self, sampler: comfy.samplers.Sampler, terms, model: Differentiable | None, others: dict):
        self.sampler, self.terms, self.model, self.others = sampler, terms, model, others

    def sample(
        self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False
    ):
        model_wrap = CheckedGuider(self.terms[-1].node, model_wrap)
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
        guider = GuidedGuider(model_wrap, started, self.model)
        return self.sampler.sample(
            guider, sigmas.clone(), extra_args, callback, noise, latent_image, denoise_mask, disable_pbar
        )


class GuidedGuider(WrappedGuider):
    """A guider as samplers use it, for one run, every estimate changed by the losses that act at its level."""

    fits_masks = True

    def __init__(self, guider, started: list[tuple[Term, Loss, Run]], model: Differentiable | None):
        super().__init__(guider)
        self._started, self._model = started, model

    def __call__(self, x, sigma, model_options={}, seed=None):  # noqa: B006 (the host's signature)
        comfy.model_management.throw_exception_if_processing_interrupted()
        level = float(sigma.max())
        acting = [item for item in self._started if item[0].acts(level)]
        through = [item for item in acting if item[0].differentiates_model]
        with _memory_advice(acting):
            if through:
                denoised, changes = self._through_model(x, sigma, model_options, seed, through)
            else:
                denoised, changes = self._guider(x, sigma, model_options=model_options, seed=seed), []
            for term, loss, run in acting:
                if term.loss.noisy:
                    change = change_by_x(gradient(term.node, loss, x, level), level, run.law)
                elif not term.through_model:
                    change = change_by_estimate(gradient(term.node, loss, denoised, level), level, run.law)
                else:
                    continue
                changes.append((term, change, run))
        for term, change, run in changes:
            denoised = denoised + limited(term.scale * change, level, run.law, term.most, run.mask).to(denoised)
        return denoised

    def _through_model(self, x, sigma, model_options, seed, through) -> tuple[Tensor, list]:
        """The estimate, and the changes by the losses that are differentiated through the model."""
        level, changes = float(sigma.max()), []
        with gradients():
            x, options = x.detach().clone().requires_grad_(), gradient_options(model_options)
            denoised = self._model(lambda: self._guider(x, sigma, model_options=options, seed=seed))
            if not denoised.requires_grad:
                raise ValueError(
                    f"{through[0][0].node}: a patch on the model cuts its estimate off from x, so there is no gradient "
                    "through it; turn through_model off"
                )
            for index, (term, loss, run) in enumerate(through):
                comfy.model_management.throw_exception_if_processing_interrupted()
                back = gradient(term.node, loss, denoised, level)
                # a model in half precision loses small gradients: it gets one of unit size, which is undone after
                size = back.abs().amax(tuple(range(1, back.ndim)), keepdim=True).clamp(min=1e-30)
                (back,) = torch.autograd.grad(denoised, x, back / size, retain_graph=index + 1 < len(through))
                changes.append((term, change_by_x(_finite(term.node, back * size), level, run.law), run))
            return denoised.detach(), changes


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
    """The host's out-of-memory error, with what would help."""
    try:
        yield
    except comfy.model_management.OOM_EXCEPTION as error:
        if not acting or not isinstance(error, torch.OutOfMemoryError):
            raise
        raise type(error)(f"{acting[-1][0].node}: the gradients do not fit into memory; {LESS}. ({error})") from error


def term_of(node: str, guider, loss, scale, interval, through_model, most, mask) -> Term:
    """The term, its percents as sigmas of the guider's model."""
    at = sigma_at(guider.model_patcher)
    return Term(node, loss, scale, at(interval[0]), at(interval[1]), through_model, most, mask)


@dataclass(frozen=True)
class ClassifierLoss:
    """`-log p(label | x, sigma)` of the noisy latent."""

    classifier: Classifier
    index: int
    patchers: tuple

    noisy = True

    @classmethod
    def of(cls, classifier: Classifier, index: int):
        device, offload = comfy.model_management.get_torch_device(), comfy.model_management.unet_offload_device()
        return cls(classifier, index, (comfy.model_patcher.ModelPatcher(classifier.network, device, offload),))

    def memory(self, shape: tuple[int, ...]) -> float:
        return 0.0

    def start(self, run: Run, latent_format, differentiable: Callable) -> Loss:
        made_for, given = (self.classifier.law, self.classifier.latent_format), (run.law, type(latent_format).__name__)
        if made_for != given:
            raise ValueError(
                f"the classifier is of a {made_for[0].name} model with {made_for[1]} latents, and this model is a "
                f"{given[0].name} one with {given[1]} latents; use one that was trained for this model"
            )
        self.classifier.check_shape(run.known)
        network = differentiable(self.patchers[0])

        def loss(x: Tensor, sigma: float) -> Tensor:
            return network(lambda: -self.classifier.log_probs(x, sigma)[:, self.index])

        return loss
