"""Direct editing between two prompts, without inversion, for every noise law.

One recurrence is FlowEdit (Kulikov et al. 2024, arXiv:2412.08629, Algorithm 1), InfEdit's virtual inversion (Xu et al.
2023, arXiv:2312.04965, Algorithm 2) and FlowAlign (Kim et al. 2025, arXiv:2505.23145, Algorithm 1). Its state is the
edit, a difference of clean latents, so it holds no noise; written in `r = std / alpha` it is the same for models that
predict noise, velocity or flow.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from .core import Step, descending
from .noise_law import Noise, NoiseLaw

PairDenoiser = Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]
"""`pair(x_source, x_target, sigma)`: the clean estimates for the source's prompt and the target's, in this order."""


def model_calls(steps: int, average: int) -> int:
    """How often `direct_edit` calls the pair of denoisers."""
    return steps * average


def direct_edit(
    pair: PairDenoiser,
    x: Tensor,
    sigmas: Sequence[float],
    law: NoiseLaw,
    source: Tensor,
    noise: Noise,
    renewal: float = 0.0,
    pull: float = 0.0,
    average: int = 1,
    mask: Tensor | None = None,
) -> Iterator[Step]:
    """Edits `source` as one prompt differs from another, from x, the source noised to sigmas[0].

    x, source: (batch, channels, ...); mask (1 = edit): broadcastable to them. At each step the source is noised anew,
    the target's latent is that plus the edit, and the edit goes to what the two estimates differ by:

        x_target = x_source + alpha edit,    change = D_target(x_target) - D_source(x_source)
        edit <- kept edit + (1 - kept - pull |dt| / (1 - t')) change,    kept = (r'/r) (1 - renewal)

    renewal 0 and pull 0 are FlowEdit; renewal 1 is InfEdit: each step forgets the edit so far (for few-step models).
    `pull` holds the edit back, as FlowAlign does; it is FlowAlign's zeta over the length of the step in flow time t, so
    that the number of steps does not matter. `average`: over how many noises a step averages the change.

    Where the mask is 0 there is no edit. A soft value scales the edit that is shown, not the one that is carried on: to
    take a share of it off at every step would leave nothing.

    A step's `denoised` is the source with the edit so far, and its `x` the same at the next level: at 0 the result,
    above it a noisy latent to sample on from with the target's prompt.
    ValueError for renewal or pull outside 0..1 and average below 1.
    """
    if not (0.0 <= renewal <= 1.0 and 0.0 <= pull <= 1.0 and average >= 1):
        raise ValueError(
            f"renewal is {renewal:g}, pull {pull:g} and average {average}; the first two are from 0 to 1, and average "
            "is at least 1"
        )
    mask = source.new_ones(()) if mask is None else mask
    edit, x_source = torch.zeros_like(source), x
    for sigma, next_sigma in pairwise(descending(sigmas)):
        change = torch.zeros_like(source)
        for index in range(average):
            x_source = law.noised(source, sigma, noise(source)) if index else x_source
            denoised_source, denoised_target = pair(x_source, x_source + law.alpha(sigma) * edit, sigma)
            change = change + (denoised_target - denoised_source) / average
        kept = law.kept(sigma, next_sigma) * (1.0 - renewal)
        edit = kept * edit + (1.0 - kept - pull * _passed(law, sigma, next_sigma)) * change
        edit = torch.where(mask > 0, edit, 0.0)
        x_source = law.noised(source, next_sigma, noise(source))
        shown = mask * edit
        yield Step(x_source + law.alpha(next_sigma) * shown, source + shown, next_sigma)


def _passed(law: NoiseLaw, sigma: float, next_sigma: float) -> float:
    """`|dt| / (1 - t')` with t the flow time: sigma of a flow model, `sigma / (1 + sigma)` otherwise."""
    if law.flow:
        return (sigma - next_sigma) / (1.0 - next_sigma)
    return (sigma - next_sigma) / (1.0 + sigma)
