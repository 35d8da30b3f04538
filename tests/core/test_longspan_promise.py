"""The policy `longspan`: what a request is promised, and who is refused."""

from __future__ import annotations

import random
from operator import itemgetter
from pathlib import Path
from typing import Any

import pytest

from longspan.config import SchedulerConfig
from longspan.core.actions import RefuseRequest
from longspan.core.books.request import Request
from longspan.core.estimate import Estimate
from longspan.core.events import InstanceJoined, InstanceLost, RequestArrived
from longspan.core.policies.longspan.calibration import Kind
from longspan.core.policies.longspan.eta import Forecast
from longspan.core.policies.longspan.promise import LEAST_DOUBT, MOST_DOUBT, Promises
from longspan.metrics.event_log import EventLogWriter, read_event_log, replay
from longspan.service_level import ServiceLevel

from .cost_models import scaling_model
from .driver import Driver
from .longspan import Arrival, Run, arrival, plain, played

SERVE = ServiceLevel(if_late="serve")
KIND = Kind(0, 7)


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


def forecast(competing_s: float, relegated_s: float | None = None, is_late: bool = False) -> Forecast:
    return Forecast(0, 0.0, competing_s, competing_s if relegated_s is None else relegated_s, is_late)


def test_nobody_is_refused_while_quotes_are_bad() -> None:
    """More than 15 of 100 were not kept."""
    for broken, is_refused in ((0, True), (29, True), (31, False), (200, False)):
        promises = Promises(factor=25.0, floor_s=15.0, margin=1.3)
        for n in range(200):
            took_s = 10.0 if n < broken else 2.0
            promises.calibration.learn(forecast(2.0), Estimate(2.0, 3.0), took_s, is_late=False, kind=KIND)
        promise = promises.make(request(), 0.1, 1.0, forecast(1e3), KIND)
        assert (promises.late_s(request(), promise) > 0.0) == is_refused


def test_the_promise_is_a_multiple_of_the_time_alone_with_a_floor() -> None:
    promises = Promises(factor=25.0, floor_s=15.0, margin=1.3)
    assert promises.make(request(3.0), 0.1, 1.0, forecast(0.1), KIND).due == 18.0
    assert promises.make(request(3.0), 2.0, 1.0, forecast(2.0), KIND).due == 53.0
    patient = Request("p", 100, 5, 3.0, 0, ServiceLevel(ttft_s=80.0))
    assert promises.make(patient, 2.0, 80.0, forecast(2.0), KIND).due == 83.0


def test_a_request_is_late_by_its_quote_times_the_margin() -> None:
    promises = Promises(factor=25.0, floor_s=15.0, margin=1.5)
    for _ in range(30):
        promises.calibration.learn(forecast(2.0), Estimate(2.0, 3.0), 2.0, is_late=False, kind=KIND)
    assert promises.late_s(request(), promises.make(request(), 0.1, 1.0, forecast(9.9), KIND)) == 0.0
    late = promises.make(request(), 0.1, 1.0, forecast(12.0), KIND)
    assert promises.late_s(request(), late) == pytest.approx(3.0)


def test_so_many_are_refused_that_nearly_all_promises_are_kept() -> None:
    """A third of a kind turns out to be hopeless, and waits for minutes. As promises break, who is of that kind is
    refused more and more; of it some are always served, and when they are in time again, all are."""
    promises, hurried = Promises(factor=25.0, floor_s=15.0, margin=1.3), forecast(1.0, 100.0)
    waiting: dict[str, tuple[Request, float]] = {}
    served: list[bool] = []

    def ask(n: int, is_hopeless: bool) -> bool:
        """One a second; returns whether it is refused."""
        now = float(n)
        promises.advance(now, lambda request: KIND)
        for name, (request, at) in list(waiting.items()):
            if at <= now:
                promises.keep(request, now, KIND)
                del waiting[name]
        asking = Request(f"r{n}", 100, 5, now, n)
        if promises.late_s(asking, promises.make(asking, 0.1, 3.0, hurried, KIND)):
            promises.refuse(asking)
            return True
        if is_hopeless:
            promises.relegate(asking, KIND)
        served.append(is_hopeless)
        waiting[asking.id] = asking, now + (100.0 if is_hopeless else 1.0)
        return False

    assert not any([ask(n, is_hopeless=False) for n in range(100)]) and promises.doubt[False] == MOST_DOUBT
    refused = [ask(n, is_hopeless=n % 3 == 0) for n in range(100, 5000)]
    assert sum(refused[-1000:]) > 600 and not all(refused[-100:])
    assert LEAST_DOUBT <= promises.doubt[False] < 0.2
    assert sum(served[-200:]) <= 80
    again = [ask(n, is_hopeless=False) for n in range(5000, 9000)]
    assert not any(again[-1000:]) and promises.doubt[False] > 0.1


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


def kept(run: Run) -> dict[str, bool]:
    """Of each that was promised its first token, whether it came within that."""
    told = {decision.request_ids[0]: decision.predicted["promised_s"] for decision in run.decisions("promise")}
    return {name: run.played[name].ttft_s <= promised_s for name, promised_s in told.items()}


@pytest.mark.parametrize(
    ("policy", "overload", "ahead"),
    [("longspan", "enforce", 6), ("longspan:at_risk_share=0", "enforce", 20), ("longspan", "warn", 20)],
)
def test_who_turned_hopeless_while_it_waited_for_memory_has_its_promise_kept(
    policy: str, overload: str, ahead: int
) -> None:
    """Three at once fill what is open to large prompts, and hold it while they generate. It lets those go first that
    are in no hurry, and can be in time, until its promise is at risk; were it not for that, until all of them have."""
    patient = ServiceLevel(ttft_s=60.0)
    before = [arrival(0.0, f"before{n}", 1010, 500, patient) for n in range(3)]
    after = [arrival(4.1 + 0.01 * n, f"after{n}", 1010, 500, patient) for n in range(20)]
    run = played(
        [*before, arrival(4.0, "hurried", 1010, 2), *after], plain(), policy=f"{policy}:closed_to_long=0.2",
        overload=overload, kv_tokens=5000, decode_headroom=500, max_waiting=10**6,
    )  # fmt: skip
    assert run.decisions("hopeless")[0].request_ids == ("hurried",) and not run.refused
    hurried = run.played["hurried"]
    assert sum(run.played[f"after{n}"].token_times[0] < hurried.token_times[0] for n in range(20)) == ahead
    assert [name for name, is_kept in kept(run).items() if not is_kept] == (["hurried"] if ahead == 20 else [])


def alone(d: Driver, prompt: list[int]) -> float:
    """What a prompt is said to take alone when it comes; it ends before this does."""
    d.arrive(prompt, 1)
    (told,) = [each.predicted["alone_s"] for each in d.why[-1] if "alone_s" in each.predicted]
    d.finish()
    return told


@pytest.mark.parametrize("instances", [1, 2, 4])
def test_a_prompt_whose_beginning_is_cached_takes_the_rest_of_what_it_would_take(instances: int) -> None:
    """On as many instances: else it would take no time at all, and be due at once."""
    config = SchedulerConfig(
        policy="longspan", num_instances=instances, kv_tokens=120_000, prefix_block=16, overload="off"
    )
    whole, document = list(range(80_000)), list(range(64_000))
    never, before = (Driver(config, cost_model=scaling_model(instances)) for _ in range(2))
    expected = alone(never, whole) - alone(before, document)
    assert expected > 0.1
    assert alone(before, whole) == pytest.approx(expected)


def around_a_loss(seed: int) -> Run:
    """Half of a fleet is lost for some seconds while streams with long prompts are being read, and short ones come."""
    rng, at, arrivals = random.Random(seed), 0.0, list[Any]()
    while at < 80.0:
        at += rng.expovariate(1.0)
        prompt = rng.randint(15_000, 30_000) if rng.random() < 0.3 else rng.randint(50, 200)
        name = f"{'long' if prompt > 200 else 'short'} {len(arrivals)}"
        arrivals.append(arrival(at, name, prompt, rng.randint(10, 60)))
    arrivals += [(30.0, InstanceLost(1, True)), (50.0, InstanceJoined(1, 60_000))]
    model = plain(2, fixed=0.005, per_token=2e-4, decode_fixed=0.02, per_request=1e-3)
    return played(sorted(arrivals, key=itemgetter(0)), model, num_instances=2, kv_tokens=60_000, lookahead=True)


def test_after_a_loss_short_ones_are_not_told_that_they_had_to_wait_for_minutes() -> None:
    """Who comes just then waits some ten seconds for what is computed again of a stream: others hardly do."""
    waited = []
    for seed in range(1, 5):
        run = around_a_loss(seed)
        assert not [name for name in run.refused if name.startswith("short")]
        quotes = {decision.request_ids[0]: decision.predicted["quote_s"] for decision in run.decisions("promise")}
        for name, request in run.played.items():
            if name.startswith("short") and 30.0 < request.arrived < 70.0:
                assert quotes[name] < 15.0
                waited += [(quotes[name], request.ttft_s)] if request.ttft_s > 5.0 and request.arrived < 31.0 else []
    assert waited and all(0.5 * took_s < quote_s < 2.0 * took_s for quote_s, took_s in waited)
