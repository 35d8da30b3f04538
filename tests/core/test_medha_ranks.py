"""The policy `medha`: who goes first, and who shares an iteration."""

from __future__ import annotations

from math import inf
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.paper.three_requests import LINEAR, run
from longspan.config import SchedulerConfig
from longspan.core.actions import RunBatch
from longspan.core.books.ledger import Ledger
from longspan.core.books.request import Request
from longspan.core.costs.load import batch_seconds
from longspan.core.policies.chunked.predictor import Predictor
from longspan.core.policies.chunked.priority import (
    earliest_deadline,
    first_come,
    lars,
    least_slack,
    shortest_remaining,
)
from longspan.core.policies.chunked.ranking import Backlog
from longspan.core.state import SchedulerState
from longspan.service_level import ServiceLevel

from .driver import Driver
from .medha import LAZY, driver, model
from .reading import batch, batches, lengths

# ranks


def test_a_short_prompt_overtakes_and_the_long_one_keeps_its_kv() -> None:
    d = driver()
    d.arrive(600, 2, "long", service=LAZY)
    d.complete()
    d.arrive(30, 2, "short")
    assert lengths(d.complete()) == {"short": 30, "long": 20}
    d.finish()
    assert d.scheduler.stats().num_preemptions == 0


def test_higher_priority_goes_first_whatever_the_slack() -> None:
    d = driver()
    d.arrive(200, 2, "running")
    d.arrive(60, 2, "urgent", service=ServiceLevel(ttft_s=0.001))
    d.arrive(60, 2, "important", service=ServiceLevel(ttft_s=1e6, priority=1))
    assert list(lengths(d.complete())) == ["important"]


def test_ranks_change_with_time() -> None:
    """Relative slack falls in proportion to the work: the short request, behind at first, comes to be ahead."""
    cost = model()
    config = SchedulerConfig(
        num_instances=1, kv_tokens=10_000, policy="medha", ttft_slo_factor=1.5, ttft_slo_floor_s=0.5
    )
    predictor = Predictor(cost, config)
    long, short = Request("long", 5000, 1, 0.0, 0), Request("short", 100, 1, 0.0, 1)
    first = [predictor.standing(request, 0.0).relative_slack for request in (long, short)]
    later = [predictor.standing(request, 1.0).relative_slack for request in (long, short)]
    assert first[0] == pytest.approx(0.5) and first[1] == pytest.approx(4.0)
    assert later[0] == pytest.approx(0.3) and later[1] == pytest.approx(-6.0)


@given(
    arrivals=st.lists(
        st.tuples(st.integers(1, 5000), st.sampled_from([None, 0.01, 5.0]), st.integers(0, 2), st.floats(0.0, 1.0)),
        min_size=1,
        max_size=12,
    ),
    rule=st.sampled_from([lars, first_come, earliest_deadline, shortest_remaining, least_slack]),
    leaving=st.data(),
)
def test_the_waiting_are_ranked_as_one_by_one(
    arrivals: list[tuple[int, float | None, int, float]], rule: Any, leaving: st.DataObject
) -> None:
    """All together in columns, however they came and left in between."""
    config = SchedulerConfig(num_instances=1, kv_tokens=10**6)
    state, predictor, backlog = SchedulerState(Ledger(config)), Predictor(model(), config), Backlog()
    now = 0.0
    for number, (tokens, ttft_s, priority, after_s) in enumerate(arrivals):
        now += after_s
        state.waiting.add(Request(str(number), tokens, 9, now, number, ServiceLevel(ttft_s, None, priority)))
        if leaving.draw(st.booleans()):
            state.waiting.remove(leaving.draw(st.sampled_from(list(state.waiting))))
        backlog.follow(state, lambda request: predictor.standing(request, 0.0))

        def key(request: Request, now: float = now) -> tuple[float, ...]:
            return (-request.service.priority, rule(predictor.standing(request, now)), request.arrival_index)

        assert [backlog.queue[place] for place in backlog.order(now, rule)] == sorted(state.waiting, key=key)
        assert backlog.least_need() == min([r.num_tokens + state.headroom(r) for r in state.waiting], default=inf)


def test_deadlines_are_in_proportion_to_the_work_above_the_floor() -> None:
    """Neither the factor nor the floor is ignored."""
    predictor = Predictor(model(), SchedulerConfig(num_instances=1, ttft_slo_factor=3.0, ttft_slo_floor_s=0.5))
    assert predictor.deadline(Request("r", 1000, 1, 0.0, 0)) == pytest.approx(3.0)
    assert predictor.deadline(Request("r", 10, 1, 0.0, 0)) == 0.5
    own = Request("r", 1000, 1, 0.0, 0, service=ServiceLevel(ttft_s=0.1))
    assert predictor.deadline(own) == 0.1


@pytest.mark.parametrize(
    ("policy", "met"),
    [
        ("medha", ["long"]),
        ("least_slack", ["long", "short 1", "short 2"]),
        ("edf", ["long", "short 1", "short 2"]),
        ("srpt", ["long", "short 1", "short 2"]),
        ("fcfs", ["long"]),
        ("sarathi", ["long"]),
    ],
)
def test_the_papers_three_requests(policy: str, met: list[str]) -> None:
    """Its own rule misses two deadlines there that others keep: it spends short requests' slack for the long one's."""
    row = run(policy, LINEAR)
    assert row["deadlines_met"] == met
    if policy == "medha":
        assert row["first_token_at_s"]["short 1"] == pytest.approx(6.2, abs=0.02)


# shared iterations


def sharing_driver(share: float) -> Driver:
    """Behind 100 tokens attention takes over; the long prompt has slack to spare."""
    d = driver(model(per_pair=5e-6), max_space_share=share, tpot_slo_s=0.1)
    d.arrive(700, 2, "long", service=ServiceLevel(ttft_s=20.0, priority=0))
    while d.lives["long"].outputs == 0 and d.scheduler._state.request("long").num_stored < 400:
        d.complete()
    return d


def test_a_long_prompt_with_slack_leaves_time_to_a_short_one_below_it() -> None:
    chunks = {}
    for share in (0.0, 0.4):
        d = sharing_driver(share)
        d.arrive(90, 2, "short", service=ServiceLevel(ttft_s=1e6))
        actions = d.complete()
        chunks[share] = lengths(actions)
        long_alone = batch_seconds(
            RunBatch(0, (0,), tuple(s for s in batch(actions).segments if s.request_id == "long")),
            model(per_pair=5e-6),
        )
        assert long_alone >= (1 - share) * 0.1 - 0.006  # a token of the long one takes some 5 ms
        assert batch_seconds(batch(actions), model(per_pair=5e-6)) <= 0.1
    assert chunks[0.0].get("short", 0) <= 5  # what no token of the long one fits in
    assert 25 <= chunks[0.4]["short"] <= 40


def test_what_short_ones_leave_goes_to_the_long_one() -> None:
    d = sharing_driver(0.4)
    alone = lengths(d.complete())["long"]
    d.arrive(3, 2, "short", service=ServiceLevel(ttft_s=1e6))
    shared = lengths(d.complete())
    assert shared["short"] == 3
    assert shared["long"] >= alone - 3


def test_one_long_prompt_in_a_batch() -> None:
    d = driver(model(per_pair=5e-6), tpot_slo_s=0.1, kv_tokens=4000)
    for name in ("a", "b"):
        d.arrive(700, 2, name, service=LAZY)
    d.finish()
    longs = [
        [segment for segment in action.segments if segment.length > 1 and segment.start >= 300]
        for _, _, actions in d.log
        for action in batches(actions)
    ]
    assert max(map(len, longs)) == 1
