"""Samplers of others on a batch of two halves, as if they ran on the first half and the second came along."""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

SIZED = {torch.randn, torch.rand}
LIKE = {torch.randn_like, torch.rand_like, torch.normal, torch.bernoulli}
IN_PLACE = {Tensor.normal_, Tensor.uniform_}
MEASURED: dict[Callable[..., Any], float] = {
    torch.linalg.norm: 2.0**0.5,  # pyright: ignore[reportUnknownMemberType]: torch gives no type
    torch.norm: 2.0**0.5,  # pyright: ignore[reportUnknownMemberType]
    Tensor.norm: 2.0**0.5,  # pyright: ignore[reportUnknownMemberType]
    torch.std: 1.0,
    Tensor.std: 1.0,
}
"""One number of a whole batch (dpm_adaptive's error, the bound of LCM's noise), and what equal halves make of it."""


class SameNoise(TorchFunctionMode):
    """While it is entered, random numbers for the whole batch are drawn for its first half, and are the second's too.

    Whatever they are drawn with: the numbers, and the generator after, are those of a run of the first half alone. What
    is measured of the whole batch is measured of that half, so that it alone decides about a sampler's steps.

    `shape` is the batch's. Whatever has as many rows and dimensions counts as the batch: samplers may change the sides.
    """

    def __init__(self, shape: tuple[int, ...]):
        super().__init__()
        self._rows, self._dimensions = shape[0], len(shape)

    @contextmanager
    def away(self) -> Generator[None, None, None]:
        """Left for a while, for the model's own calls."""
        self.__exit__(None, None, None)  # pyright: ignore[reportUnknownMemberType]
        try:
            yield
        finally:
            self.__enter__()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        first = [self._first(value) for value in args]
        if func in SIZED:
            options = dict(kwargs)
            size = options.pop("size", args[0] if args and not isinstance(args[0], int) else args)
            if self._whole(size):
                return _twice(func((self._rows // 2, *size[1:]), **options))
        elif all(a is b for a, b in zip(args, first, strict=True)):  # not about the batch
            pass
        elif func in LIKE:
            return _twice(func(*first, **kwargs))
        elif func in IN_PLACE:
            return args[0].copy_(_twice(func(*first, **kwargs)))
        elif func in MEASURED and len(args) == 1 and not kwargs:
            return func(*first) * MEASURED[func]
        return func(*args, **kwargs)

    def _whole(self, size: Sequence[int]) -> bool:
        return len(size) == self._dimensions and size[0] == self._rows

    def _first(self, value: Any) -> Any:
        return value[: self._rows // 2] if isinstance(value, Tensor) and self._whole(value.shape) else value


def _twice(half: Tensor) -> Tensor:
    return torch.cat([half, half])
