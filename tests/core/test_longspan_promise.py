"""The policy `longspan`: what a request is promised, and who is refused."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from longspan.config import SchedulerConfig
from longspan.core.actions import RefuseRequest
from longspan.core.books.request import Request
from longspan.core.estimate import Estimate
from longspan.core.events import RequestArrived
from longspan.core.policies.longspan.promise import Promises
from longspan.metrics.event_log import EventLogWriter, read_event_log, replay
from longspan.service_level import ServiceLevel

from .longspan import Arrival, arrival, plain, played

SERVE = ServiceLevel(if_late="serve")


def flood(seconds: float = 60.0, load: float = 3.0, service: ServiceLevel | None = None) -> list[Arrival]:
    """Requests of some 0.2 s each, so many times as one instance can serve."""
    rng, at, found = random.Random(3), 0.0, []
    while at < seconds:
        at += rng.expovariate(load / 0.21)
        found.append(arrival(at, f"r{len(found)}", rng.randint(100, 300), 2, service or ServiceLevel()))
    return found


def test_who_cannot_be_served_in_time_is_refused() -> None:
    run = played(flood(), plain(), max_waiting=10**6)
    assert len(run.refused) > 100
    for refusal in run.refused.values():
        assert refusal.reason == "late"
        assert refusal.retry_after_s is not None and refusal.retry_after_s > 0.0
        assert "overloaded" in refusal.message and " 0 s." not in refusal.message
    assert all(request.ended for name, request in run.played.items() if name not in run.refused)


@pytest.mark.parametrize(("overload", "service"), [("off", None), ("warn", None), ("enforce", SERVE)])
def test_nobody_is_refused_who_asks_for_it_or_where_it_is_off(overload: str, service: ServiceLevel | None) -> None:
    run = played(flood(service=service), plain(), overload=overload, max_waiting=10**6)
    assert not run.refused
    assert all(request.ended for request in run.played.values())
    assert len(run.decisions("promise")) == len(run.played)


def test_nobody_is_refused_before_enough_is_known() -> None:
    """Not before twenty requests have got their first tokens."""
    served, first = 0, None
    run = played(flood(load=10.0), plain(), max_waiting=10**6)
    for now, _, actions in run.steps:
        if first is None and any(getattr(action, "reason", "") == "late" for action in actions):
            first = now
    assert first is not None
    served = sum(request.token_times[0] <= first for request in run.played.values() if request.token_times)
    assert served >= 20


def test_a_promise_knows_who_goes_before_whom() -> None:
    """One of a higher priority is not told of the others' work, nor refused for it; one of a lower one is."""
    first, last = ServiceLevel(priority=1), ServiceLevel(priority=-1)
    asked = [arrival(20.0, "first", 200, 2, first), arrival(20.0, "last", 200, 2, last)]
    crowd = [arrival(19.0 + 0.01 * n, f"r{n}", 300, 2, SERVE) for n in range(40)]
    arrivals = sorted([*flood(18.0, load=0.5), *crowd, *asked], key=lambda each: each[0])
    run = played(arrivals, plain(), max_waiting=10**6)
    told = {decision.request_ids[0]: decision.predicted for decision in run.decisions("promise")}
    assert told["first"]["ahead"] == 0 and "first" not in run.refused
    assert told["last"]["ahead"] >= 30 and told["last"]["ahead_s"] > told["first"]["ahead_s"] + 3.0


def request(at: float = 0.0) -> Request:
    return Request("r", 100, 5, at, 0)


def test_nobody_is_refused_while_quotes_are_bad() -> None:
    """More than 15 of 100 were not kept."""
    for broken, is_refused in ((0, True), (29, True), (31, False), (200, False)):
        promises = Promises(factor=25.0, floor_s=15.0, margin=1.3)
        for n in range(200):
            promises.calibration.learn(2.0, Estimate(2.0, 3.0), 10.0 if n < broken else 2.0, kind=0)
        promise = promises.make(request(), 0.1, 1e3, kind=0)
        assert (promises.late_s(request(), promise) > 0.0) == is_refused


def test_the_promise_is_a_multiple_of_the_time_alone_with_a_floor() -> None:
    promises = Promises(factor=25.0, floor_s=15.0, margin=1.3)
    assert promises.make(request(3.0), 0.1, 0.1, 0).due == 18.0
    assert promises.make(request(3.0), 2.0, 2.0, 0).due == 53.0
    patient = Request("p", 100, 5, 3.0, 0, ServiceLevel(ttft_s=80.0))
    assert promises.make(patient, 2.0, 2.0, 0).due == 83.0


def test_a_request_is_late_by_its_median_times_the_margin() -> None:
    promises = Promises(factor=25.0, floor_s=15.0, margin=1.5)
    for _ in range(30):
        promises.calibration.learn(2.0, Estimate(2.0, 3.0), 2.0, 0)
    assert promises.late_s(request(), promises.make(request(), 0.1, 9.9, 0)) == 0.0
    assert promises.late_s(request(), promises.make(request(), 0.1, 12.0, 0)) == pytest.approx(3.0)


def test_refusals_are_in_the_log_and_replay(tmp_path: Path) -> None:
    model, serve = plain(), ServiceLevel(if_late="serve")
    arrivals = [(at, event if n % 5 else arrival(at, event.request_id, 200, 2, serve)[1])
                for n, (at, event) in enumerate(flood(30.0))]  # fmt: skip
    run = played(arrivals, model, max_waiting=10**6)
    assert run.refused and not any(int(name[1:]) % 5 == 0 for name in run.refused)
    config = SchedulerConfig(
        num_instances=1, kv_tokens=10**6, policy="longspan", tpot_slo_s=0.1, ttft_slo_factor=5.0, ttft_slo_floor_s=1.0,
        lookahead=False, max_waiting=10**6,
    )  # fmt: skip
    with EventLogWriter(tmp_path / "log.jsonl", config, model) as log:
        for now, event, actions in run.steps:
            log.write(now, event, actions)
    assert log.path is not None
    written = read_event_log(log.path)
    records = list(written)
    logged = [action for record in records for action in record.actions if isinstance(action, RefuseRequest)]
    assert logged == list(run.refused.values())
    told = [record.event for record in records if isinstance(record.event, RequestArrived)]
    assert [event.service.if_late for event in told] == [event.service.if_late for _, event in arrivals]
    assert replay(log.path) is None


def test_a_prompt_that_is_late_waits_for_the_load_of_those_that_are_not() -> None:
    """What bounds a hopeless prompt's wait is what the others leave, who can be in time: at loads below one, some times
    its work over that. Those that are late as it is share with it, and do not starve it, short as they are."""
    rng, arrivals, late = random.Random(4), [], ServiceLevel(ttft_s=1e-3)
    for service, load in ((ServiceLevel(ttft_s=60.0), 0.5), (late, 0.4)):
        at = 0.0
        while at < 300.0:
            at += rng.expovariate(load / 0.22)
            arrivals.append(arrival(at, f"r{len(arrivals)}", rng.randint(100, 300), 1, service))
    arrivals.append(arrival(30.0, "long", 5000, 1, late))
    run = played(arrivals, plain(), overload="off", max_waiting=10**6)
    assert run.played["long"].ttft_s < 5.0 / (1 - 0.9)
    assert all(run.played[name].ttft_s < 60.0 for name in run.played)
