"""A loss on its wire, as a term of guidance, and in a run; and its gradients."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ...samplers.core import HeldNoise
from ...samplers.gradient_guidance import Loss
from ...samplers.masks import check_mask
from ...samplers.window import Window
from ..host import Run, errors_of, gradients, masks, progress
from .picture_losses import OfPictures


class SteerLossValue(Protocol):
    """What is on a STEER_LOSS wire: finished and immutable."""

    noisy: bool
    """Whether the loss reads the noisy x, not the denoised estimate."""
    by_picture: tuple[str, ...]
    """The names of what it holds one of for all pictures of a batch, or one for each."""

    @property
    def patchers(self) -> tuple:
        """The host's patchers of the models it calls, which are to be loaded beside the diffusion model."""
        ...

    def memory(self, shape: tuple[int, ...]) -> float:
        """About how many bytes the loss and its gradient take for latents of this shape, at the least."""
        ...

    def start(self, run: Run, latent_format, differentiable: Callable) -> Loss:
        """The loss for one run, on latents in model space; `differentiable(patcher)` are its loaded models.

        ValueError for a run that it cannot judge.
        """
        ...


@dataclass(frozen=True)
class Term:
    """A loss with all that says how it guides."""

    node: str
    loss: SteerLossValue
    scale: float
    window: Window
    through_model: bool
    max_change: float
    mask: Tensor | None
    iterations: int = 1

    def acts(self, sigma: float) -> bool:
        return self.scale != 0.0 and sigma in self.window

    def fitted(self, latent: Tensor) -> "Term":
        """The term with its mask fitted to the latent; ValueError for a mask that does not fit."""
        if self.mask is None:
            return self
        with errors_of("mask"):
            check_mask(self.mask)
            return replace(self, mask=masks.fitted_mask(self.mask, latent))

    def nothing_to_do(self) -> bool:
        """Whether a fitted mask is empty; says so, and of a batch for which pictures."""
        return self.mask is not None and progress.tell_empty(self.node, "mask", self.mask, "the loss steers nothing")

    @property
    def differentiates_model(self) -> bool:
        return self.through_model and not self.loss.noisy


class Acting(NamedTuple):
    """A term of one run."""

    term: Term
    loss: Loss
    run: Run
    """With the term's mask."""
    draws: list[HeldNoise]
    """What the loss draws, of a term with iterations."""


def of_picture(loss: Any, index: int) -> Any:
    """A loss on a batch as that of its picture `index`."""
    values = {name: getattr(loss, name) for name in loss.by_picture}
    own = {name: value[index, None] for name, value in values.items() if value is not None and len(value) > 1}
    return replace(loss, **own) if own else loss


def gradients_of(node: str, losses: list[Loss], latent: Tensor, sigma: float) -> list[Tensor]:
    """Each loss's dL/dlatent, float32, each sample's by itself."""
    slopes: list[Tensor] = []
    with gradients():
        latent = latent.detach().clone().float().requires_grad_()
        for index, values in enumerate(values_of(losses, latent, sigma)):
            # the sum: each sample's loss is its own, so each gets its own gradient
            (slope,) = torch.autograd.grad(values.sum(), latent, retain_graph=index + 1 < len(losses))
            slopes.append(finite(node, slope))
    return slopes


def sum_and_gradient(acting: list[Acting], latent: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    """Each sample's sum of these terms' losses by their scales (batch,), and its gradient by the latent, float32."""
    first, total = acting[0].term, torch.zeros(())
    with gradients():
        latent = latent.detach().clone().float().requires_grad_()
        for item, values in zip(acting, values_of([item.loss for item in acting], latent, sigma), strict=True):
            total = total + item.term.scale / first.scale * values
        (slope,) = torch.autograd.grad(total.sum(), latent)
    return first.scale * total.detach(), first.scale * finite(first.node, slope)


def values_of(losses: list[Loss], latent: Tensor, sigma: float) -> Iterator[Tensor]:
    """Each loss's values (batch,); what reads pictures of the same VAE reads one decoding."""
    pictures: dict[int, Tensor] = {}
    for loss in losses:
        progress.stop_if_interrupted()
        if isinstance(loss, OfPictures):
            if id(loss.vae) not in pictures:
                pictures[id(loss.vae)] = loss.decode(latent)
            yield loss.judge(pictures[id(loss.vae)])
        else:
            yield loss(latent, sigma)


def finite(node: str, slope: Tensor) -> Tensor:
    if not torch.isfinite(slope).all():
        raise ValueError(
            f"{node}: the gradient holds NaN or infinite values; run the VAE or the model at a higher precision "
            "(--fp32-vae, --force-fp32), or lower the scale"
        )
    return slope
