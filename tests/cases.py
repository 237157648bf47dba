"""Which cases of a parametrized test run each time. The others are marked slow: `make test-all` runs them too."""

from collections.abc import Iterable, Sequence
from itertools import combinations, product

import pytest


def some(values: Iterable, *quick) -> list:
    """All of the values, of which all but those named are slow. ValueError where one named is none of them."""
    values = list(values)
    if unknown := [each for each in quick if each not in values]:
        raise ValueError(f"{unknown} are none of {values}")
    return [value if value in quick else pytest.param(value, marks=pytest.mark.slow) for value in values]


def in_pairs(*factors: Sequence) -> list:
    """All combinations, of which all but some are slow: these have each pair of values of any two factors in them."""
    quick = set(pairwise(*map(len, factors)))
    rows = product(*(range(len(factor)) for factor in factors))
    return [_case(factors, row, row in quick) for row in rows]


def checkered(first: Sequence, second: Sequence, step: int | None = None) -> list:
    """All pairs, of which every `step`-th of each row and column is quick and the others are slow.

    By default as few as leave out no value of either: `step` is the length of the shorter one.
    """
    step = step or min(len(first), len(second))
    places = product(range(len(first)), range(len(second)))
    return [_case((first, second), place, sum(place) % step == 0) for place in places]


def _case(factors: Sequence[Sequence], row: tuple[int, ...], quick: bool):
    values = [factor[index] for factor, index in zip(factors, row, strict=True)]
    return pytest.param(*values, marks=() if quick else pytest.mark.slow)


def pairwise(*sizes: int) -> list[tuple[int, ...]]:
    """Rows of indices, one below each size, in which each pair of indices of any two columns stands.

    Greedy: always the first of the rows that have the most pairs that are still missing. The same each time.
    """
    candidates = {row: set(combinations(enumerate(row), 2)) for row in product(*map(range, sizes))}
    missing, rows = set().union(*candidates.values()), []
    while missing:
        rows.append(max(candidates, key=lambda row: len(candidates[row] & missing)))
        missing -= candidates.pop(rows[-1])
    return rows
