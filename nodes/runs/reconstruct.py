"""A VAE of the host fitted to one picture: its decoder with weights of its own, or the latent it decodes."""

from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, replace
from math import inf

import torch
from torch import Tensor
from torch.nn import Parameter
from tqdm.auto import tqdm

from ...samplers.masks import paints
from ...samplers.reconstruct import Reconstruction, reconstruct
from ..host import Differentiable, errors_of, gradients, progress
from ..host import vae as host_vae


class Progress:
    """Shows each update of several pictures: the bar, the loss, the picture; and heeds an interrupt."""

    def __init__(self, name: str, pictures: int, steps: int):
        self.node, self.pictures, self.steps, self.done = name, pictures, steps, 0
        self.bar = progress.bar(pictures * (steps + 1))
        self.shown = tqdm(total=pictures * (steps + 1), desc=name)

    def show(self, item: Reconstruction) -> None:
        index, self.done = self.done // (self.steps + 1), self.done + 1
        self.bar.update_absolute(self.done, preview=progress.picture_preview(item.picture[0]))
        self.shown.set_postfix(loss=f"{item.loss:.2e}", refresh=False)
        self.shown.update()
        progress.show_text(
            f"{self.node}: picture {index + 1} of {self.pictures}, update {item.updates} of {self.steps}: "
            f"loss {item.loss:.2e}"
        )
        progress.stop_if_interrupted()


@dataclass(frozen=True)
class Problem:
    """A latent (1, channels, h, w) whose picture is to be the source (1, H, W, 3) outside the mask (1, H, W)."""

    source: Tensor
    latent: Tensor
    mask: Tensor
    steps: int
    learning_rate: float

    def fit(
        self, vae, decoder: Differentiable, latent: Tensor, parameters: Callable
    ) -> Generator[Reconstruction, None, None]:
        source, mask = self.source.movedim(-1, 1).to(latent), self.mask[:, None].to(latent)
        return reconstruct(
            lambda: host_vae.decoded(vae, decoder, latent, torch.float32), parameters, source, mask, self.steps,
            self.learning_rate, gradients,
        )  # fmt: skip


def fitted_latent(vae, decoder: Differentiable, problem: Problem, show: Callable[[Reconstruction], None]) -> Tensor:
    """The latent whose picture comes closest. The learning rate is in units of the latent's standard deviation."""
    with gradients():
        latent = Parameter(problem.latent.to(decoder.patcher.load_device, torch.float32, copy=True))
    problem = replace(problem, learning_rate=problem.learning_rate * (float(latent.std()) or 1.0))
    best, least = problem.latent, inf
    with closing(problem.fit(vae, decoder, latent, lambda: [latent])) as items:
        for item in items:
            if item.loss < least:
                best, least = latent.detach().clone(), item.loss
            show(item)
    return best.to(problem.latent)


def fitted_picture(vae, decoder: Differentiable, problem: Problem, show: Callable[[Reconstruction], None]) -> Tensor:
    """The picture (1, H, W, 3) that comes closest, of a decoder fitted to it and then forgotten."""
    latent = problem.latent.to(decoder.patcher.load_device, torch.float32)
    best, least = problem.source.movedim(-1, 1), inf
    with (
        decoder.own_weights() as weights,
        closing(problem.fit(vae, decoder, latent, lambda: list(weights.values()))) as items,
    ):
        for item in items:
            if item.loss < least:
                best, least = item.picture, item.loss
            show(item)
    return best.movedim(1, -1).clamp(0.0, 1.0).to(problem.source.device)


def fit_each(node: str, vae, fitted: Callable, problems: list[Problem]) -> Tensor:
    """`fitted_latent` or `fitted_picture` of each problem, one after the other.

    Where the mask is empty nothing was edited, and the latent or the source stays as it is.
    """
    weights, (first, *_) = fitted is fitted_picture, problems
    out = [problem.source if weights else problem.latent for problem in problems]
    left = [index for index, problem in enumerate(problems) if paints(problem.mask)]
    if left:
        with errors_of(node), host_vae.loaded(node, vae, first.latent.shape, weights) as decoder:
            display = Progress(node, len(left), first.steps)
            with display.shown:
                for index in left:
                    out[index] = fitted(vae, decoder, problems[index], display.show)
    masks = torch.cat([problem.mask for problem in problems])
    progress.tell_empty(node, "mask", masks, f"the {'source' if weights else 'latent'} stays as it is")
    return torch.cat(out)
