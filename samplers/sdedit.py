"""SDEdit (Meng et al. 2022, arXiv:2108.01073, Algorithm 1): start from the guide noised to a strength, sample down."""

from collections.abc import Callable, Sequence

from torch import linspace

Schedule = Callable[[int], Sequence[float]]
"""Called with a number of steps, returns a scheduler's sigmas for a full run (descending, usually down to 0)."""


def sdedit_sigmas(schedule: Schedule, start_sigma: float, steps: int) -> tuple[list[float], int]:
    """`steps` steps of a scheduler from exactly start_sigma down, and how many of its steps lie above.

    Takes the longest full run that has at most `steps` of its levels below start_sigma and puts start_sigma before
    them. A scheduler that cannot give that many (one bound to a table skips counts) is run finer and thinned evenly.
    ValueError when even its finest run has fewer.
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}; at least one step is needed")
    total = _largest_total(schedule, start_sigma, steps)
    levels = _below(schedule, total, start_sigma)
    if len(levels) < steps:
        levels = _below(schedule, total + 1, start_sigma)
    if len(levels) < steps:
        raise ValueError(
            f"this scheduler has only {len(levels)} levels below sigma {start_sigma:g}; "
            f"ask for at most {len(levels)} steps or a higher strength"
        )
    picked = linspace(len(levels) - 1, 0, steps).round()  # counted from the end, which is reached even by one step
    levels = [levels[int(index)] for index in reversed(list(picked))]
    return [start_sigma, *levels], max(0, total - steps)


def _below(schedule: Schedule, total: int, start_sigma: float) -> list[float]:
    """The distinct levels of a full run below start_sigma; one within rounding of it would make a step of no length."""
    levels = [sigma for sigma in map(float, schedule(total)) if sigma < start_sigma * (1.0 - 1e-4)]
    return list(dict.fromkeys(levels))


def _largest_total(schedule: Schedule, start_sigma: float, steps: int) -> int:
    """The largest number of full steps that puts at most `steps` levels below start_sigma (up to a limit)."""
    low, high = steps, 2 * steps + 2
    while len(_below(schedule, high, start_sigma)) <= steps:
        low, high = high, 2 * high
        if high > 100 * steps + 2000:
            return low
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if len(_below(schedule, middle, start_sigma)) <= steps else (low, middle)
    return low
