"""Ticks that people can read, for any range."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from longspan.plot_axes import MOST_TICKS, count_whole, make_readable, round_ticks


@given(st.floats(1e-6, 1e6), st.floats(1.01, 1e9))
def test_ticks_are_a_few_round_numbers_inside(low: float, ratio: float) -> None:
    high = low * ratio
    ticks = round_ticks(low, high)
    assert 2 <= len(ticks) <= MOST_TICKS
    assert all(low * (1 - 1e-6) <= tick <= high * (1 + 1e-6) for tick in ticks)
    assert all(one < other for one, other in pairwise(ticks))
    assert len({f"{tick:g}" for tick in ticks}) == len(ticks) or ratio < 1.05  # no two look the same


@given(st.floats(0.001, 1.0), st.floats(1.2, 1e5))
def test_with_zero_there_is_a_tick_at_it(linear_to: float, ratio: float) -> None:
    ticks = round_ticks(-0.001, linear_to * ratio, linear_to)
    assert ticks[0] == 0.0 and len(ticks) <= MOST_TICKS and sorted(ticks) == ticks


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-1.0, 1.0), (1.0, 1.0), (1.0, math.inf), (2.0, 1.0)])
def test_what_has_no_logarithm_has_no_ticks(low: float, high: float) -> None:
    assert round_ticks(low, high) == []


@pytest.mark.parametrize(("last", "ticks"), [
    (0, ["0"]), (1, ["0", "1"]), (6, list("0123456")), (63, [str(n) for n in range(0, 61, 10)]),
    (1023, [str(n) for n in range(0, 1001, 200)]),
])  # fmt: skip
def test_instances_are_whole(last: int, ticks: list[str]) -> None:
    axes = Figure().subplots()
    axes.plot([0, 1], [0.2, 0.4])
    count_whole(axes.yaxis, 0, last)
    assert [label.get_text() for label in axes.get_yticklabels()] == ticks
    assert axes.get_ylim() == (-0.5, last + 0.5)


def test_a_plot_of_a_narrow_range_has_ticks_and_those_that_were_set_stay() -> None:
    axes = Figure().subplots()
    axes.plot([1, 4, 16], [0.31, 0.33, 0.36])
    axes.set(xscale="log", yscale="log")
    axes.set_xticks([1, 4, 16], ["one", "four", "sixteen"])
    make_readable(axes)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["one", "four", "sixteen"]
    assert len(axes.get_yticks()) >= 3 and len({label.get_text() for label in axes.get_yticklabels()}) >= 3
