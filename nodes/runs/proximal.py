"""Losses solved for at one level: the proximal estimate of the terms with iterations."""

from functools import partial

import torch
from torch import Tensor

from ...samplers.gradient_guidance import limited, undecided
from ...samplers.proximal import proximal_change
from .loss_terms import Acting, Term, sum_and_gradient


def solved_together(acting: list[Acting]) -> list[list[Acting]]:
    """The terms with iterations, those in one list whose sum is solved for: all that are alike in mask and limits."""
    lists: list[list[Acting]] = []
    for item in acting:
        if item.term.iterations > 1:
            alike = next((items for items in lists if _alike(items[0].term, item.term)), None)
            if alike is None:
                lists.append([item])
            else:
                alike.append(item)
    return lists


def _alike(a: Term, b: Term) -> bool:
    if (a.iterations, a.max_change) != (b.iterations, b.max_change):
        return False
    if a.mask is None or b.mask is None:
        return a.mask is b.mask
    return a.mask.shape == b.mask.shape and torch.equal(a.mask, b.mask)


def change_solved(items: list[Acting], denoised: Tensor, level: float) -> Tensor:
    """What the losses of these terms together change of the estimate, within their limit.

    The mask is where the estimate may move, a soft one by how much: it is a factor of the variance.
    """
    (term, _, run, _), denoised = items[0], denoised.detach().float()
    for item in items:
        for draw in item.draws:
            draw.release()

    variance = torch.full_like(denoised, undecided(level, run.law))
    if run.mask is not None:
        variance = variance * run.mask.to(variance)
    change = proximal_change(partial(sum_and_gradient, items, sigma=level), denoised, variance.sqrt(), term.iterations)
    support = None if run.mask is None else run.mask > 0.0
    return limited(change, level, run.law, term.max_change, support)
