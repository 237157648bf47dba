"""Methods run in turns on the same problems, and pictures as bytes."""

import time

import numpy as np


def in_turns(methods: dict, problems: list, rows: list[int]):
    """(name, problem, what the method made of it, seconds, calls and rows), each method first in turn.

    Every call of a model appends its rows to `rows`. The first problem comes once more before all, unseen: it warms up.
    """
    for turn, given in enumerate([problems[0], *problems]):
        for name in list(methods)[:: -1 if turn % 2 else 1]:
            started, calls = time.perf_counter(), len(rows)
            made = methods[name](given)
            spent = {"seconds": time.perf_counter() - started, "calls": len(rows) - calls,
                     "rows": sum(rows[calls:])}  # fmt: skip
            if turn:
                yield name, given, made, spent


def to_bytes(picture) -> np.ndarray:
    """A picture as the VAE gives it, in 8 bits."""
    return (picture.clamp(0, 1) * 255).round().byte().numpy()
