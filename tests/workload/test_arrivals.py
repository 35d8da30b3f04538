from __future__ import annotations

import statistics
from itertools import islice, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longspan.errors import ConfigError
from longspan.workload import arrivals

NUMBER = 20_000
SEEDS = st.integers(0, 2**32)


@given(seed=SEEDS, rate=st.floats(1e-3, 1e3), cv2=st.floats(0.01, 20))
def test_the_same_seed_gives_the_same_times_in_order(seed: int, rate: float, cv2: float) -> None:
    times = list(islice(arrivals.gamma(rate, cv2, seed), 50))
    assert times == list(islice(arrivals.gamma(rate, cv2, seed), 50))
    assert times[0] >= 0 and all(a <= b for a, b in pairwise(times))
    assert times != list(islice(arrivals.gamma(rate, cv2, seed + 1), 50))


@pytest.mark.parametrize("cv2", [0.25, 1.0, 4.0])
def test_rate_and_burstiness_are_those_asked_for(cv2: float) -> None:
    times = list(islice(arrivals.gamma(5.0, cv2, seed=3), NUMBER))
    gaps = [b - a for a, b in pairwise(times)]
    mean = statistics.fmean(gaps)
    assert mean == pytest.approx(0.2, rel=0.05)
    assert statistics.variance(gaps) / mean**2 == pytest.approx(cv2, rel=0.1)


def test_poisson_counts_vary_like_their_mean() -> None:
    times = list(islice(arrivals.poisson(10.0, seed=1), NUMBER))
    counts = [0] * (int(times[-1]) + 1)
    for time in times:
        counts[int(time)] += 1
    assert statistics.variance(counts[:-1]) == pytest.approx(statistics.fmean(counts[:-1]), rel=0.1)


def test_interval() -> None:
    assert list(islice(arrivals.interval(30.0, 15.0), 3)) == [15.0, 45.0, 75.0]


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_settings(value: float) -> None:
    for make in (
        lambda: arrivals.poisson(value, 0),
        lambda: arrivals.gamma(1.0, value, 0),
        lambda: arrivals.interval(value),
    ):
        with pytest.raises(ConfigError):
            make()
