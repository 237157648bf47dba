"""What every sampler shares: the denoiser contract, the step it yields, its sigmas and its randomness."""

from collections.abc import Callable, Sequence
from hashlib import blake2b
from itertools import pairwise
from math import isfinite
from typing import NamedTuple

import torch
from torch import Tensor

Denoiser = Callable[[Tensor, float], Tensor]
"""`denoise(x, sigma)`: the model's estimate of the clean latent from x at level sigma, of x's shape."""


class Step(NamedTuple):
    """What a sampler yields after each model call; the last step's `x` is its result."""

    x: Tensor
    """The latent after the step, at level `sigma`."""
    denoised: Tensor
    """The denoised estimate the step was made with."""
    sigma: float


def check_two(sigmas: Sequence[float]) -> None:
    """ValueError unless there is a level to come from and one to go to."""
    if len(sigmas) < 2:
        raise ValueError(f"sigmas: {len(sigmas)} given, a run needs at least two (from, to)")


def descending(sigmas: Sequence[float]) -> list[float]:
    """The sigmas as floats, checked: at least two, finite, never rising, and only the last may be 0.

    Raises ValueError saying which entry is wrong.
    """
    check_two(sigmas)
    values = [float(sigma) for sigma in sigmas]
    for index, sigma in enumerate(values):
        if not isfinite(sigma) or sigma < 0.0:
            raise ValueError(f"sigmas[{index}] is {sigma:g}; noise levels are finite and not negative")
    for index, (before, after) in enumerate(pairwise(values)):
        if after > before:
            raise ValueError(
                f"sigmas rise from {before:g} to {after:g} at position {index + 1}; "
                "sampling needs them descending (flip them)"
            )
        if before == 0.0:
            raise ValueError(f"sigmas[{index}] is 0, but only the last sigma may be 0")
    return values


class SampleNoise:
    """Noise for each sample of a batch from a generator of its own, so that a batch equals its samples alone.

    A sample's generator is seeded by the run's seed, the name of the stream and the sample's own starting noise and
    latent (`starts`: tensors of the batch); samples that start alike are told apart by their order. Drawn on the CPU,
    so the numbers are the same on every device.
    """

    def __init__(self, seed: int, stream: str, *starts: Tensor):
        seen: dict[bytes, int] = {}
        self._generators = []
        for sample in zip(*(start.detach().float().cpu() for start in starts), strict=True):
            digest = blake2b(f"{seed}/{stream}".encode())
            for part in sample:
                digest.update(part.contiguous().numpy().tobytes())
            copies = seen[digest.digest()] = seen.get(digest.digest(), -1) + 1
            digest.update(str(copies).encode())
            state = int.from_bytes(digest.digest()[:7], "little")
            self._generators.append(torch.Generator().manual_seed(state))

    def __call__(self, like: Tensor) -> Tensor:
        return torch.stack([torch.randn(like.shape[1:], generator=g) for g in self._generators]).to(like)
