from math import inf, nextafter

import pytest
from steer.samplers.window import Window


@pytest.mark.parametrize("sigma, inside", [(3.0, True), (1.0, True), (2.0, True), (3.1, False), (0.9, False)])
def test_both_ends_are_in_it(sigma, inside):
    assert (sigma in Window(3.0, 1.0)) == inside


def test_until_leaves_its_end_out_and_nothing_else():
    window = Window.until(1.0, highest=3.0)
    assert 1.0 not in window and nextafter(1.0, inf) in window and 3.0 in window


def test_what_stops_where_the_run_begins_never_acts():
    assert not any(sigma in Window.until(14.6, highest=14.6) for sigma in (20.0, 14.6, 5.0, 0.0))


def test_without_ends_it_is_the_whole_run():
    assert all(sigma in Window() for sigma in (inf, 14.6, 0.0))
