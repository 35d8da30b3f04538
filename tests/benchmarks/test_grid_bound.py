"""The grid's bound against all that could be done: it is never lower, and where nothing has to be divided it is met."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.policy.grid_bound import Ask, Job, doable, fractional, most_value

_SOME = st.integers(1, 12).map(float)
_ASKS = st.lists(
    st.builds(
        lambda at, within, more, prompt, decode, value: Ask(at, at + within, at + within + more, prompt, decode, value),
        _SOME, _SOME, _SOME, _SOME, st.integers(0, 6).map(float), st.sampled_from([0.5, 1.0, 3.0]),
    ),
    max_size=7,
)  # fmt: skip


def _best(asks: list[Ask]) -> float:
    """Of all sets of requests that a preemptive server can serve whole, in time, the one of most value.

    It can if earliest deadline first does, with each request's decodes as a job that may begin at its arrival: that
    lets it more than any policy.
    """
    best = 0.0
    for size in range(len(asks) + 1):
        for chosen in combinations(asks, size):
            jobs = [Job(a.arrived_s, a.first_token_due_s, a.prompt_s, a.value) for a in chosen]
            jobs += [Job(a.arrived_s, a.last_token_due_s, a.decode_s, a.value) for a in chosen if a.decode_s]
            jobs.sort(key=lambda job: job.release_s)
            if doable(jobs) > sum(job.work_s for job in jobs) - 1e-6:
                best = max(best, sum(a.value for a in chosen))
    return best


@given(_ASKS)
def test_no_set_of_requests_is_worth_more(asks: list[Ask]) -> None:
    assert most_value(asks) >= _best(asks) - 1e-6


def _most_of(jobs: list[Job]) -> float:
    """What Hall's condition allows to be done, one unit after the other: units of work, moments of one second."""
    taken: dict[int, tuple[int, int]] = {}

    def place(unit: tuple[int, int], seen: set[int]) -> bool:
        job = jobs[unit[0]]
        for moment in range(int(job.release_s), int(job.deadline_s)):
            if moment not in seen:
                seen.add(moment)
                if moment not in taken or place(taken[moment], seen):
                    taken[moment] = unit
                    return True
        return False

    units = [(number, unit) for number, job in enumerate(jobs) for unit in range(int(job.work_s))]
    return float(sum(place(unit, set()) for unit in units))


@given(_ASKS)
def test_earliest_deadline_first_does_the_most(asks: list[Ask]) -> None:
    jobs = [Job(a.arrived_s, a.first_token_due_s, a.prompt_s, a.value) for a in asks]
    jobs.sort(key=lambda job: job.release_s)
    assert doable(jobs) == pytest.approx(_most_of(jobs))


@given(_ASKS, st.randoms(use_true_random=False))
def test_no_order_is_better_than_the_greedy_one(asks: list[Ask], random: object) -> None:
    """Given the jobs one by one in another order, each as much as stays feasible, is a solution of the programme."""
    jobs = [Job(a.arrived_s, a.first_token_due_s, a.prompt_s, a.value) for a in asks]
    optimum, value, before = fractional(jobs), 0.0, 0.0
    random.shuffle(jobs)  # type: ignore[attr-defined]  # hypothesis gives a random.Random
    for number, job in enumerate(jobs, start=1):
        now = doable(sorted(jobs[:number], key=lambda job: job.release_s))
        value, before = value + job.value * (now - before) / job.work_s, now
    assert value <= optimum + 1e-6


def test_what_is_feasible_counts_whole_and_what_is_not_in_part() -> None:
    one = Ask(0.0, 10.0, 20.0, 8.0, 4.0)
    assert most_value([one]) == pytest.approx(1.0)
    after = replace(one, arrived_s=12.0, first_token_due_s=30.0, last_token_due_s=40.0)
    assert most_value([one, after]) == pytest.approx(2.0)
    assert most_value([one, one]) == pytest.approx(1.25)  # both prompts in 10 s
    late = Ask(0.0, 10.0, 10.0, 8.0, 8.0)  # half of it all, whichever half that is
    assert most_value([late]) == pytest.approx(10 / 16)
