"""When those who find no room are told to come again."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from longspan.engine.beginnings import LEAST_S, MOST_S
from longspan.engine.departures import Departures


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


steps = st.lists(st.tuples(st.floats(0.01, 20.0), st.floats(0.5, 1000.0)), max_size=80)


@given(steps, st.floats(0.0, 50.0), st.floats(0.5, 5000.0))
def test_it_is_the_pace_of_the_last_32(steps: list[tuple[float, float]], rest_s: float, amount: float) -> None:
    clock = Clock()
    departures = Departures(clock)
    times, amounts = [clock.now], []
    for seconds, left in steps:
        clock.now += seconds
        departures.note(left)
        times.append(clock.now)
        amounts.append(left)
    clock.now += rest_s
    assert all(one <= other for one, other in pairwise(times))
    kept = amounts[-32:]
    passed = clock.now - times[-1 - len(kept)]
    expected = passed * amount / sum(kept) if kept else passed
    assert abs(departures.after_s(amount) - min(MOST_S, max(LEAST_S, expected))) < 1e-6


def test_what_was_before_an_empty_place_counts_no_more() -> None:
    clock = Clock()
    departures = Departures(clock)
    for _ in range(10):
        clock.now += 3.0
        departures.note()
    assert departures.after_s() == 3.0
    clock.now += 3600.0
    departures.begin()
    clock.now += 7.0
    assert departures.after_s() == 7.0  # as long again
    departures.note()
    assert departures.after_s(2.0) == 14.0
