"""What every sampler shares: the denoiser contract, the step it yields, its sigmas and its randomness."""

from collections.abc import Callable, Sequence
from hashlib import blake2b
from itertools import pairwise
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


LARGEST, LARGEST_LEVEL = 1e6, 1e10
"""Far above every value of latents, pictures and texts, and every model's noise levels; float32 still holds squares."""


def check_values(name: str, values: Tensor) -> None:
    """ValueError for what is not a number, and for numbers that a model's arithmetic cannot take."""
    if not torch.isfinite(values).all():
        raise ValueError(f"{name} holds NaN or infinite values; look at the node that made it")
    largest = float(values.float().abs().max()) if values.numel() else 0.0
    if largest > LARGEST:
        raise ValueError(
            f"{name} holds values up to {largest:.3g}, up to {LARGEST:g} work; look at the node that made it"
        )


def check_tensor(name: str, tensor: object, shape: Sequence[int | None], *also: torch.dtype) -> None:
    """ValueError unless it is finite, not empty, of this shape (None is any size), and float32 or one of `also`."""
    if not isinstance(tensor, Tensor) or tensor.dtype not in (torch.float32, *also):
        raise ValueError(f"{name} is {getattr(tensor, 'dtype', type(tensor).__name__)}; a float32 tensor is needed")
    sizes = tuple(tensor.shape)
    fits = len(sizes) == len(shape) and all(wanted in (None, size) for size, wanted in zip(sizes, shape, strict=True))
    if not fits or not tensor.numel():
        wanted = " x ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{name} has the shape {sizes}; {wanted} is needed, and nothing empty")
    if not torch.isfinite(tensor).all():
        raise ValueError(f"{name} holds NaN or infinite values; look at what made it")


def check_two(sigmas: Sequence[float]) -> None:
    """ValueError unless there is a level to come from and one to go to."""
    if len(sigmas) < 2:
        raise ValueError(f"sigmas: {len(sigmas)} given, a run needs at least two (from, to)")


def _numbers(sigmas: Sequence[float]) -> list[float]:
    check_two(sigmas)
    values = [float(sigma) for sigma in sigmas]
    for index, sigma in enumerate(values):
        if not 0.0 <= sigma <= LARGEST_LEVEL:  # a NaN fails every comparison
            raise ValueError(
                f"sigmas[{index}] is {sigma:g}; noise levels are finite and not negative, and at most {LARGEST_LEVEL:g}"
            )
    return values


def noise_levels(sigmas: Sequence[float]) -> list[float]:
    """The sigmas as floats, checked: at least two, finite, and only the last may be 0.

    Raises ValueError saying which entry is wrong.
    """
    values = _numbers(sigmas)
    if 0.0 in values[:-1]:
        raise ValueError(f"sigmas[{values.index(0.0)}] is 0, but only the last sigma may be 0")
    return values


def descending(sigmas: Sequence[float]) -> list[float]:
    """The `noise_levels`, which have to never rise. Raises ValueError saying which entry is wrong."""
    for index, (before, after) in enumerate(pairwise(_numbers(sigmas))):
        if after > before:
            raise ValueError(
                f"sigmas rise from {before:g} to {after:g} at position {index + 1}; "
                "sampling needs them descending (flip them)"
            )
    return noise_levels(sigmas)


def same_level(a: float, b: float) -> bool:
    """Whether two noise levels are one, up to rounding: the share of them by which they differ is below 1e-4."""
    return abs(a - b) <= 1e-4 * max(a, b)


class SampleNoise:
    """Noise for each sample of a batch from a generator of its own, so that a batch equals its samples alone.

    A sample's generator is seeded by the run's seed, the name of the stream and the sample's own starting noise and
    latent (`starts`: tensors of the batch); samples that start alike are told apart by their order. Drawn on the CPU,
    so the numbers are the same on every device.
    """

    def __init__(self, seed: int, stream: str, *starts: Tensor):
        seen: dict[bytes, int] = {}
        self._generators: list[torch.Generator] = []
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


class HeldNoise:
    """Noise of another source that is drawn once and stays the same until it is released."""

    def __init__(self, noise: Callable[[Tensor], Tensor]):
        self._noise, self._held = noise, None

    def __call__(self, like: Tensor) -> Tensor:
        if self._held is None:
            self._held = self._noise(like)
        return self._held

    def release(self) -> None:
        self._held = None
