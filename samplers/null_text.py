"""Null-text optimisation (Mokady et al. 2023, arXiv:2211.09794, Algorithm 1): guided sampling returns the picture."""

from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from .batch import chosen
from .core import Denoiser
from .guidance import cfg
from .inversion import Inversion
from .noise_law import NoiseLaw
from .optimise import Adam, differentiating

AHEAD = 0.3
"""A step's search starts from the embedding of the step before plus this share of how far that one had moved."""

Unconditional = Callable[[Tensor, float, Tensor], Tensor]
"""`unconditional(x, sigma, embedding)`: the estimate under an embedding (batch, tokens, channels), differentiable."""


class InnerStep(NamedTuple):
    """What `null_text` yields after each of its predictions; the last of a step holds the step's result."""

    step: int
    """Which step of the sampling, from 0 (the noisiest)."""
    inner: int
    """How many updates the prediction was made after, from 0."""
    losses: Tensor
    """Each sample's smallest loss in this step so far (batch,); NaN where nothing had to be predicted."""
    embedding: Tensor
    """The embeddings those losses came from (batch, tokens, channels), float32."""
    x: Tensor
    """The latents after the step under those embeddings."""


def step_learning_rate(learning_rate: float, step: int, steps: int) -> float:
    """Falls from the whole to half of it over the run: the authors' `1 - i/100` at their 50 steps, at any number."""
    return learning_rate * (1.0 - step / (2 * steps))


def step_early_stop(early_stop: float, step: int, steps: int) -> float:
    """Rises linearly to about 100 times: the authors' `1e-5 + 2e-5 i` at their 50 steps, at any number; 0 stays 0."""
    return early_stop * (1.0 + 100.0 * step / steps)


@dataclass(frozen=True)
class StepLoss:
    """How far one guided step from x, under an embedding, ends from the trajectory."""

    unconditional: Unconditional
    positive: Tensor
    scale: float
    x: Tensor
    pivot: Tensor
    sigma: float
    next_sigma: float
    law: NoiseLaw

    def __call__(self, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """(each sample's loss, the latents after the step)."""
        denoised = cfg(self.positive, self.unconditional(self.x, self.sigma, embedding), self.scale)
        after = self.law.step(self.x, denoised, self.sigma, self.next_sigma)
        unit = self.law.alpha(self.next_sigma) ** 2 + self.law.std(self.next_sigma) ** 2
        return ((after - self.pivot) ** 2).flatten(1).mean(1) / unit, after


def null_text(
    conditional: Denoiser,
    unconditional: Unconditional,
    embedding: Tensor,
    inversion: Inversion,
    scale: float,
    inner_steps: int = 10,
    learning_rate: float = 0.01,
    early_stop: float = 1e-5,
    context: Callable[[], AbstractContextManager[None]] = differentiating,
) -> Iterator[InnerStep]:
    """For each step down the inversion, the embedding under which guidance by `scale` stays on its trajectory.

    embedding: (batch, tokens, channels), where the search starts; each sample gets its own, in float32. `conditional`
    is called once a step, `unconditional` at most `inner_steps` times, within `context`; nothing is yielded there.
    The loss is the mean squared distance to the trajectory over `alpha^2 + std^2`, the variance of a noised latent of
    unit variance: for variance exploding the 1/(1 + sigma^2) that turns it into the paper's units, for flow the like.
    At scale 1 the embedding does not matter: it is returned as it is and nothing is called.

    Three things differ from the authors' code, so that as good a result takes fewer calls. The early stop is tested
    before an update, not after it. The step is made with the best prediction so far, not with one more. And the next
    step's search starts from the last update, moved on by a share of what the last step changed, since embeddings
    change smoothly with sigma.
    """
    steps = len(inversion.sigmas) - 1
    embedding = embedding.float()
    if scale == 1.0:
        yield from unguided(embedding, inversion)
        return
    x, last = inversion.latents[0].to(embedding), embedding
    for step, (sigma, next_sigma) in enumerate(pairwise(inversion.sigmas)):
        pivot, stop = inversion.latents[step + 1].to(x), step_early_stop(early_stop, step, steps)
        loss = StepLoss(unconditional, conditional(x, sigma), scale, x, pivot, sigma, next_sigma, inversion.law)
        adam = Adam(step_learning_rate(learning_rate, step, steps))
        start = InnerStep(step, 0, x.new_full((x.shape[0],), torch.inf), embedding, x)
        updated, x = yield from _descend(loss, context, start, inner_steps, adam, stop)
        embedding, last = updated + AHEAD * (updated - last), updated


def unguided(embedding: Tensor, inversion: Inversion) -> Iterator[InnerStep]:
    """`null_text` at scale 1, where no embedding matters: each step's is the given one, (batch, tokens, channels)."""
    unknown = torch.full((embedding.shape[0],), torch.nan)
    for step, x in enumerate(inversion.latents[1:]):
        yield InnerStep(step, 0, unknown, embedding.float(), x)


def _descend(
    loss: StepLoss,
    context: Callable[[], AbstractContextManager[None]],
    best: InnerStep,
    inner_steps: int,
    adam: Adam,
    stop: float,
) -> Generator[InnerStep, None, tuple[Tensor, Tensor]]:
    """The inner steps of one step; returns where the next one starts: the embeddings and the latents.

    A sample below `stop` is done, whatever the others of its batch still do.
    """
    embedding = best.embedding
    for inner in range(inner_steps):
        wanted, gradient = best.losses >= stop, None
        with context():
            embedding = embedding.clone().requires_grad_()
            losses, after = loss(embedding)
            if (wanted & (losses >= stop)).any():
                gradient = torch.autograd.grad(losses.sum(), embedding)[0]
        losses, after, embedding = losses.detach(), after.detach(), embedding.detach()
        if not torch.isfinite(losses).all():
            raise ValueError(
                f"the loss is {list(map(float, losses))} at step {best.step} (sigma {loss.sigma:.4g}), "
                f"inner step {inner}; "
                "lower learning_rate, or run the model at a higher precision (--bf16-unet, --fp32-unet)"
            )
        better = wanted & (losses < best.losses)
        best = InnerStep(best.step, inner, *map(partial(chosen, better), (losses, embedding, after), best[2:]))
        yield best
        if gradient is None:
            break
        embedding = adam.step(embedding, gradient)
    return chosen(best.losses < stop, best.embedding, embedding), best.x
