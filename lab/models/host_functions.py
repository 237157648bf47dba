"""Functions of the host in whose place stands one that knows more."""

import functools
from collections.abc import Callable

DONE = "_steer_shapes"


def wrap(module, name: str, wrapper: Callable) -> None:
    """Put `wrapper(host)` in the place of a host's function, once."""
    host = getattr(module, name)
    if not hasattr(host, DONE):
        wrapped = functools.wraps(host)(wrapper(host))
        setattr(wrapped, DONE, True)
        setattr(module, name, wrapped)


def is_marked(sd: dict, mark: tuple[str, tuple[int, ...]]) -> bool:
    """Whether a file's tensors have this one, in this shape."""
    key, shape = mark
    return key in sd and tuple(sd[key].shape) == shape
