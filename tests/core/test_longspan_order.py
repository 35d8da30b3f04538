"""The policy `longspan`: who goes first, beside models of it that share nothing with it."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longspan.config import SchedulerConfig
from longspan.core.books.request import Request
from longspan.core.policies.chunked.priority import Standing
from longspan.core.policies.longspan.order import HOPELESS, INTERRUPTED, SharedProcessor, rank
from longspan.core.scheduler import Scheduler
from longspan.service_level import ServiceLevel

from .driver import Driver
from .longspan import Run, arrival, plain, played
from .reading import batches, preempted

AT_RISK = 0.25
Asked = tuple[float, float, float, float, float]
asked = st.tuples(
    st.floats(0, 50), st.floats(0.1, 50), st.floats(0.001, 20), st.floats(0, 100), st.just(0.0) | st.floats(1, 150)
)


def standing(now: float, one: Asked) -> Standing[float]:
    arrived, deadline_s, work_s, tag, promised_s = one
    return Standing(now, arrived, deadline_s, work_s, work_s, work_s, tag, 0.0, promised_s)


@given(
    st.lists(asked, min_size=2, max_size=12), st.floats(0, 100), st.floats(0, 10), st.floats(0.5, 2), st.floats(0, 1)
)
def test_feasible_before_hopeless(drawn: list[Asked], now: float, c: float, scale: float, wait_s: float) -> None:
    """Those that can be in time by deadline, or by a promise at risk, and c times what is left; then those that can
    keep a promise, by that; the others behind, by the shared clock."""
    feasible, hopeless, broken = [], [], []
    for place, (arrived, deadline_s, work_s, tag, promised_s) in enumerate(drawn):
        left_s = work_s * scale + wait_s
        if now + left_s <= arrived + deadline_s:
            feasible.append((arrived + deadline_s + c * left_s, place))
        elif now + left_s > arrived + promised_s:
            broken.append((tag, place))
        else:
            is_at_risk = now + left_s > arrived + promised_s - AT_RISK * promised_s
            (feasible if is_at_risk else hopeless).append((arrived + promised_s + c * left_s, place))
    keys = [rank(standing(now, one), c, scale, wait_s, AT_RISK) for one in drawn]
    expected = [place for part in (feasible, hopeless, broken) for _, place in sorted(part)]
    assert all(keys[a] <= keys[b] + 1e-5 for a, b in pairwise(expected))
    assert all(keys[place] < HOPELESS for _, place in feasible)
    columns = [np.array(column) for column in zip(*drawn, strict=True)]
    arrived, deadline_s, work_s, tag, promised_s = columns
    place = np.zeros_like(tag)
    many = Standing(np.float64(now), arrived, deadline_s, work_s, work_s, work_s, tag, place, promised_s)
    assert rank(many, c, scale, wait_s, AT_RISK).tolist() == keys


def test_who_was_interrupted_goes_before_everybody() -> None:
    late = rank(replace(standing(50.0, (0.0, 0.0, 9.0, 0.0, 0.0)), tag=INTERRUPTED), 2.0, 1.0, 0.0, AT_RISK)
    assert late < rank(standing(50.0, (0.0, 60.0, 0.1, 3.0, 0.0)), 2.0, 1.0, 0.0, AT_RISK)


# processor sharing

steps = st.lists(
    st.one_of(
        st.tuples(st.just("arrive"), st.integers(0, 8), st.integers(1, 40)),
        st.tuples(st.sampled_from(["serve", "abort"]), st.integers(0, 8), st.integers(0, 100)),
    ),
    min_size=2, max_size=20,
)  # fmt: skip


@given(steps, st.integers(1, 4))
def test_tags_are_in_the_order_in_which_processor_sharing_ends_them(
    drawn: list[tuple[str, int, int]], processors: int
) -> None:
    """Each that has no first token gets its share of every second; what is left of it is its tag less the clock."""
    sharing, now = SharedProcessor(processors), 0
    left: dict[Request, Fraction] = {}
    for number, (what, wait, value) in enumerate(drawn):
        for request in left:
            left[request] -= Fraction(wait * processors, len(left))
        now += wait
        sharing.advance(float(now))
        if what == "arrive":
            request = Request(str(number), 1, 1, float(now), number)
            left[request] = Fraction(value)
            sharing.arrive(request, float(value))
        elif left:
            gone = list(left)[value % len(left)]
            del left[gone]
            if what == "serve":
                sharing.serve(gone)
            else:
                sharing.end(gone)
        for request, rest in left.items():
            assert sharing.tag(request) - sharing.shown_s == pytest.approx(float(rest), abs=1e-6)


# in use


def first_tokens(run: Run) -> list[str]:
    times = {name: request.token_times[0] for name, request in run.played.items() if request.token_times}
    return sorted(times, key=lambda name: times[name])


def test_a_hopeless_prompt_lets_the_others_be_in_time() -> None:
    """By its deadline it would go first; it cannot be in time, and would make them all late."""
    urgent = ServiceLevel(ttft_s=0.5)
    shorts = [arrival(0.1, f"short {n}", 300, service=ServiceLevel(ttft_s=2.0)) for n in range(4)]
    run = played(
        [arrival(0.0, "first", 200), arrival(0.1, "hopeless", 900, service=urgent), *shorts], plain(), kv_tokens=10**5
    )
    assert first_tokens(run)[-1] == "hopeless"
    assert all(run.played[f"short {n}"].ttft_s < 2.0 for n in range(4))


def test_hopeless_ones_end_as_shared_alike() -> None:
    """Not the shortest first, nor the first first: the long one that came early, then the shorts that came late."""
    hopeless = ServiceLevel(ttft_s=1e-3)
    early = [arrival(0.0, f"early {n}", 1500, service=hopeless) for n in range(2)]
    late = [arrival(2.0, "late short", 400, service=hopeless), arrival(2.0, "late long", 1400, service=hopeless)]
    run = played([*early, *late], plain(), max_batch_tokens=100)
    assert first_tokens(run) == ["early 0", "late short", "early 1", "late long"]


def test_who_lost_its_kv_between_two_tokens_goes_on_before_newcomers() -> None:
    """Somebody is reading it, and its deadline, of its first token, is long over."""
    config = SchedulerConfig(
        num_instances=1, kv_tokens=60, policy="longspan", decode_headroom=0, lookahead=False, max_batch_tokens=50,
        ttft_slo_floor_s=1e3,
    )  # fmt: skip
    d = Driver(config, cost_model=plain())
    d.arrive(25, 30, "old")
    d.arrive(25, 30, "young")
    lost: list[str] = []
    while not lost:
        lost = preempted(d.complete())
        d.now += 100.0
    assert lost == ["young"]
    d.arrive(20, 2, "newcomer")
    while d.lives["old"].ended is None:
        d.complete()
    ran = [s.request_id for _, _, actions in d.log[-1:] for b in batches(actions) for s in b.segments if s.start == 0]
    assert ran[0] == "young"
    d.finish()


def test_decisions_replay(tmp_path: Any) -> None:
    """Two schedulers that are told the same decide the same, asked for estimates in between or not."""
    arrivals = [arrival(0.3 * n, f"r{n}", 100 + 731 * n % 3000, 1 + n % 30) for n in range(60)]
    model, estimates = plain(2), []

    def ask(run: Run, now: float) -> None:
        estimates.append([run.scheduler.estimate(f"r{n}", now + 1e-3 * n) for n in range(0, 60, 7)])

    asking = played(arrivals, model, num_instances=2, look=ask)
    assert sum(found is not None for some in estimates for found in some) > 100
    fresh = Scheduler(replace(asking.scheduler.config, policy="longspan"), cost_model=model)
    for now, event, actions in asking.steps:
        assert fresh.handle(event, now) == actions
