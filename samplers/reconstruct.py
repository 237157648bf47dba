"""Keeping a background through a lossy decoder (Avrahami et al. 2023, arXiv:2206.02779, section 3.2).

The latent, or the decoder's weights, are fitted to one picture: outside the mask to show the source, inside it to show
what was decoded at first.
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager
from math import isfinite
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from .optimise import Adam, differentiating

BACKGROUND = 100.0
"""What the background weighs against the rest, as published."""


class Reconstruction(NamedTuple):
    """What `reconstruct` yields: the picture after `updates`, and its loss."""

    updates: int
    loss: float
    picture: Tensor


def preservation_loss(picture: Tensor, foreground: Tensor, source: Tensor, mask: Tensor) -> Tensor:
    """`MSE(m picture, m foreground) + 100 MSE((1-m) picture, (1-m) source)`, both means over all pixels.

    Pictures (1, 3, h, w), mask (1, 1, h, w).
    """
    kept = 1.0 - mask
    return mse_loss(mask * picture, mask * foreground) + BACKGROUND * mse_loss(kept * picture, kept * source)


def reconstruct(
    decode: Callable[[], Tensor],
    parameters: Callable[[], Sequence[Tensor]],
    source: Tensor,
    mask: Tensor,
    steps: int,
    learning_rate: float,
    context: Callable[[], AbstractContextManager[None]] = differentiating,
) -> Generator[Reconstruction, None, None]:
    """Before the first and after each of `steps` updates the picture; the caller keeps the one of the smallest loss.

    `decode()` gives the picture (1, 3, h, w) under the present values of `parameters()`, which are changed in place
    while this runs; they are asked for after the first decoding. The first picture is the one to stay inside the mask.
    """
    foreground: Tensor | None = None
    fitted: list[tuple[Tensor, Adam]] = []
    try:
        for updates in range(steps + 1):
            with context(), torch.set_grad_enabled(updates < steps):
                picture = decode()
                if foreground is None:
                    foreground = picture.detach()
                    fitted += [(parameter, Adam(learning_rate)) for parameter in parameters()]
                    if not fitted or not picture.requires_grad:
                        raise ValueError("vae's decoding uses no weights that can be changed, or cuts its gradient off")
                loss = preservation_loss(picture, foreground, source, mask)
            if not isfinite(loss.item()):
                raise ValueError(f"the loss is {loss.item():g} after {updates} updates; lower learning_rate")
            yield Reconstruction(updates, loss.item(), picture.detach())
            if updates < steps:
                with context():
                    _update(loss, fitted)
    finally:
        fitted.clear()  # Python 3.12 frees nothing of a generator that is closed at a yield outside of a try


def _update(loss: Tensor, fitted: list[tuple[Tensor, Adam]]) -> None:
    gradients = torch.autograd.grad(loss, [parameter for parameter, _ in fitted])
    with torch.no_grad():
        for (parameter, adam), gradient in zip(fitted, gradients, strict=True):
            parameter.copy_(adam.step(parameter, gradient))
