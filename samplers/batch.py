"""A batch whose samples do not see each other: one number, or one choice, for each."""

import torch
from torch import Tensor


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """(batch,) in the shape that broadcasts over each sample of `like` (batch, ...)."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


def chosen(which: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """The samples of a (batch, ...) where `which` (batch,), else those of b; without a copy where one has them all."""
    if which.all():
        return a
    return torch.where(per_sample(which, a), a, b) if which.any() else b
