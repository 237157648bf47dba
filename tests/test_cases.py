"""What runs each time leaves out no value, and of pairs no pair; all is there for `make test-all`."""

from itertools import combinations, product
from math import prod

import pytest
from steer.tests.cases import checkered, in_pairs, pairwise, some

SIZES = [(3, 4), (2, 2, 2), (5, 3, 2), (4, 4, 3, 2), (1, 6, 2)]


@pytest.mark.parametrize("sizes", SIZES)
def test_each_pair_stands_in_a_row_and_fewer_rows_than_all_do(sizes):
    rows = pairwise(*sizes)
    assert len(set(rows)) == len(rows) and all(
        0 <= each < size for row in rows for each, size in zip(row, sizes, strict=True)
    )
    for one, other in combinations(range(len(sizes)), 2):
        assert {(row[one], row[other]) for row in rows} == set(product(range(sizes[one]), range(sizes[other])))
    largest, second = sorted(sizes)[:-3:-1]
    assert largest * second <= len(rows) <= 1.5 * largest * second
    assert len(rows) < prod(sizes) or len(sizes) == 2 or 1 in sizes
    assert rows == pairwise(*sizes)


def quick(cases):
    """The values of the cases that are not slow."""
    return [getattr(case, "values", case) for case in cases if not getattr(case, "marks", ())]


def test_all_combinations_are_there_and_each_pair_is_quick():
    factors = ("a", "b", "c"), (1, 2), (True, False, None)
    made = in_pairs(*factors)
    assert [case.values for case in made] == list(product(*factors)) and len(quick(made)) == 9


@pytest.mark.parametrize("step, count", [(None, 6), (2, 9), (3, 6)])
def test_of_a_board_each_row_and_column_is_quick(step, count):
    factors = "abcdef", (1, 2, 3)
    made = checkered(*factors, step)
    assert [case.values for case in made] == list(product(*factors)) and len(quick(made)) == count
    assert [set(column) for column in zip(*quick(made), strict=True)] == [set(factor) for factor in factors]


def test_those_named_are_quick():
    assert quick(some("abc", "c", "a")) == ["a", "c"] and len(some("abc", "a")) == 3
    with pytest.raises(ValueError, match="'d'"):
        some("abc", "d")
