"""A LoRA fitted by a loss inside a run of the host."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from statistics import fmean

import torch
from torch import Tensor

from ...samplers.fit_lora import FitStep, Place, Slopes, fit, slopes_of
from ...samplers.gradient_guidance import Loss
from ...samplers.inversion import Inversion
from ..host import GuidedModels, Run, gradients, lora, progress
from .clip_direction import CLIPDirectionLoss
from .loss_terms import SteerLossValue, of_picture, values_of
from .picture_losses import as_decoded

NODE = "SteerFitLoRA"
LESS = "take fewer or smaller cutouts, or smaller pictures, or set cfg to 1"


@dataclass(frozen=True)
class Settings:
    """How the LoRA is fitted, and how far."""

    rank: int
    learning_rate: float
    iterations: int
    keep: float
    seed: int


@dataclass
class Fitting:
    """The method of one run, which leaves the LoRA and the objective at each update."""

    loss: SteerLossValue
    inversion: Inversion
    settings: Settings
    layers: list[str]
    models: GuidedModels
    values: list[float] = field(default_factory=list)
    lora: dict[str, Tensor] = field(default_factory=dict)

    def __call__(self, run: Run) -> Tensor:
        with run.errors():
            run.check()
            run.check_every_call()
            losses = self._started(run)
        settings, model = self.settings, self.models.model
        assert model is not None
        with model.low_rank(self.layers, settings.rank, settings.seed) as fitted:
            weights = [weight for pair in fitted.values() for weight in (pair.down, pair.up)]
            search = Search(run, self.models, losses, self.loss.noisy, settings.keep, weights)
            steps = fit(search, weights, self.inversion, settings.learning_rate, settings.iterations)
            with run.errors(), closing(steps):
                for step in run.shown(steps, self.updates):
                    self.values.append(step.loss)
                    self._show(step)
            self.lora = lora.lora_of(fitted)
        return run.known

    @property
    def updates(self) -> int:
        """How many there will be."""
        return self.settings.iterations * len(self.inversion.latents[0]) * (len(self.inversion.sigmas) - 1)

    def passes(self) -> list[float]:
        """The mean objective of each picture's steps, for each time that it was gone through."""
        steps = len(self.inversion.sigmas) - 1
        return [fmean(self.values[first : first + steps]) for first in range(0, len(self.values), steps)]

    def _started(self, run: Run) -> list[Loss]:
        """The loss for each picture; ValueError for what it cannot judge, and for pictures that go in beside x."""
        alone = any("c_concat" in entry["model_conds"] for entries in run.guider.conds.values() for entry in entries)
        if alone and len(self.inversion.latents[0]) > 1:
            raise ValueError(
                f"the model ({type(run.model).__name__}) is given a picture beside x, as for inpainting, and the "
                f"inversion is of {len(self.inversion.latents[0])}; invert one alone"
            )
        sources = self.inversion.latents[-1].to(run.known)
        losses = [
            of_picture(self.loss, index).start(
                run.of(source[None]), run.model.latent_format, lambda patcher: self.models.others[id(patcher)]
            )
            for index, source in enumerate(sources)
        ]
        if isinstance(self.loss, CLIPDirectionLoss):
            with gradients(), torch.no_grad():
                decoded = [loss.decode(source[None]) for loss, source in zip(losses, sources, strict=True)]
            check_order(torch.cat(decoded), as_decoded(self.loss.vae, run, self.loss.image).movedim(-1, 1))
        return losses

    def _show(self, step: FitStep) -> None:
        iterations, pictures = self.settings.iterations, len(self.inversion.latents[0])
        progress.show_text(
            f"{NODE}: iteration {step.iteration + 1} of {iterations}, picture {step.picture + 1} of {pictures}: "
            f"loss {step.loss:.3g}"
        )


def check_pictures(loss: SteerLossValue, inversion: Inversion) -> None:
    """ValueError unless the inversion is of single pictures, and the loss has what it needs of each of them."""
    latents = inversion.latents[0]
    count, frames = len(latents), latents.shape[2] if latents.ndim == 5 else 1
    if frames > 1:
        raise ValueError(
            f"the inversion is of {frames} frames; a LoRA is fitted to single pictures, not through a video model"
        )
    for name in loss.by_picture:
        value = getattr(loss, name)
        if value is not None and len(value) not in (1, count):
            raise ValueError(
                f"the loss has {len(value)} of {name} and the inversion {count} pictures; give one, or one for each"
            )
    if isinstance(loss, CLIPDirectionLoss) and len(loss.image) < count:
        raise ValueError(
            f"the loss has 1 image and the inversion {count} pictures, and the change of each is measured from its "
            "own; give the loss the batch of images that was encoded and inverted, in the same order"
        )


def check_order(pictures: Tensor, images: Tensor) -> None:
    """ValueError where an image is another picture's than that of its place; both (batch, 3, height, width)."""
    gaps = (pictures[:, None] - images.to(pictures)).square().flatten(2).mean(2)
    for index, (gap, nearest) in enumerate(zip(gaps, gaps.argmin(1).tolist(), strict=True)):
        if gap[index] > 2.0 * gap[nearest]:
            raise ValueError(
                f"image {nearest + 1} of the loss is picture {index + 1} of the inversion, and each is measured from "
                "the one at its own place; give the loss the batch of images that was encoded, in the same order"
            )


def check_prompts(**conditionings) -> None:
    """ValueError for a prompt of several rows, or with what belongs to one of several pictures."""
    for name, entries in conditionings.items():
        for text, options in entries or ():
            if text.shape[0] > 1:
                raise ValueError(f"{name} holds {text.shape[0]} prompts; give one, for all pictures of the inversion")
            hint = getattr(options.get("control"), "cond_hint_original", None)
            if hint is not None and len(hint) > 1:
                raise ValueError(f"{name} has a ControlNet with {len(hint)} pictures; give one, for all pictures")


@dataclass(frozen=True)
class Search:
    """The objective and its gradients at a place, through the host's models."""

    run: Run
    models: GuidedModels
    losses: list[Loss]
    noisy: bool
    """Whether the loss reads the noisy latent."""
    keep: float
    weights: Sequence[Tensor]

    def __call__(self, place: Place) -> Slopes:
        return self.models.computed(self.run.node, lambda: self._slopes(place))

    def _slopes(self, place: Place) -> Slopes:
        model, loss = self.models.model, self.losses[place.picture]
        assert model is not None
        options = model.options(self.run.options)
        with gradients():
            x = place.x.clone()
            denoised = model(lambda: self.run.denoise(x, place.sigma, options))
            if not denoised.requires_grad:
                raise ValueError(
                    "a patch on the model cuts its estimate off from its weights, so there is nothing to fit; remove it"
                )
            return slopes_of(denoised, lambda estimate: self._objective(loss, place, estimate), self.weights)

    def _objective(self, loss: Loss, place: Place, estimate: Tensor) -> Tensor:
        """The loss, of a classifier on the latent after the step, and how far the estimate is from the picture."""
        latent, level = estimate, place.sigma
        if self.noisy:
            latent, level = self.run.law.step(place.x, estimate, place.sigma, place.next_sigma), place.next_sigma
        (value,) = values_of([loss], latent, level)
        return value.sum() + self.keep * (estimate - place.source).abs().mean()


def report(fitting: Fitting) -> str:
    """What came of it."""
    pictures, settings = len(fitting.inversion.latents[0]), fitting.settings
    values = fitting.passes()
    first, last = fmean(values[:pictures]), fmean(values[-pictures:])
    return (
        f"the loss and {settings.keep:g} of the distance went from {first:.3g} to {last:.3g}, as means of the first "
        f"and the last iteration\n{fitting.updates} updates: {pictures} pictures, {len(fitting.inversion.sigmas) - 1} "
        f"steps, {settings.iterations} iterations; {len(fitting.layers)} layers at rank {settings.rank}"
    )
