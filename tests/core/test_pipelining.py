"""Pipeline stages: what may enter the first one while earlier batches are in the others."""

from __future__ import annotations

from typing import Any

import pytest

from longspan.config import SchedulerConfig
from longspan.core.actions import Action, FreeKV, RunBatch, StopRequest
from longspan.core.costs.load import batch_seconds
from longspan.core.events import RequestArrived
from longspan.core.scheduler import Scheduler
from longspan.service_level import ServiceLevel
from longspan.simulator.driver import Work
from longspan.simulator.playback import play

from .cost_models import scaling_model
from .driver import Driver
from .reading import batches, freed
from .settings import configured

# A token costs 1 ms, whatever its context; nothing is fixed.
MODEL = scaling_model(2, fixed=0.0, fixed_step=0.0, per_token=1e-3, per_pair=0.0, decode_fixed=0.0, decode_step=0.0,
                      per_request=1e-3)  # fmt: skip


def driver(**changes: Any) -> Driver:
    """Iterations of 50 ms: 50 tokens."""
    settings: dict[str, Any] = {"num_instances": 1, "pp": 2, "kv_tokens": 1000, "policy": "medha",
                                "decode_headroom": 4, "tpot_slo_s": 0.0505}  # fmt: skip
    return Driver(SchedulerConfig(**(settings | changes)), cost_model=MODEL)


def segments(actions: list[Action]) -> list[tuple[str, int, int]]:
    return [(s.request_id, s.start, s.length) for batch in batches(actions) for s in batch.segments]


def test_the_next_chunk_follows_into_the_first_stage() -> None:
    d = driver()
    assert segments(d.arrive(120, 2, "long")) == [("long", 0, 50)]
    first, *_ = d.model.started
    assert segments(d.complete(first)) == [("long", 50, 50)]  # it has left the first stage
    second = d.model.started[-1]
    assert segments(d.complete(second)) == []  # two batches in two stages are enough
    assert segments(d.complete(first)) == [("long", 100, 20)]
    d.finish()


@pytest.mark.parametrize(("stages", "in_flight"), [(2, 2), (3, 3), (4, 5), (8, 9)])
def test_how_many_batches_are_in_flight(stages: int, in_flight: int) -> None:
    """As many as there are stages; where these are many, one more, which hides the time that the host takes."""
    d = driver(pp=stages)
    d.arrive(900, 2, "long")
    issued = [d.model.started[0]]
    while actions := d.complete(issued[-1]):  # it leaves the first stage
        issued += batches(actions)
    assert len(issued) == in_flight
    assert segments(d.complete(issued[0])) == [("long", 50 * in_flight, 50)], "one is through"
    d.finish()


def test_a_decode_waits_for_its_token_while_chunks_go_on() -> None:
    """A token comes out of the last stage; only then may it enter the first."""
    d = driver()
    d.arrive(10, 3, "short")
    (batch,) = d.model.started
    assert segments(d.complete(batch)) == []  # nothing is left to send: its token is not sampled yet
    assert segments(d.arrive(200, 2, "long")) == [("long", 0, 50)]
    assert segments(d.complete(batch)) == []  # sampled, but the first stage is busy
    assert segments(d.complete()) == [("short", 10, 1), ("long", 50, 49)]
    d.finish()


def test_an_abort_with_chunks_in_both_stages_frees_when_both_are_through() -> None:
    d = driver()
    d.arrive(300, 2, "long")
    first = d.model.started[0]
    d.complete(first)
    assert not [a for a in d.abort("long") if isinstance(a, FreeKV)]
    assert not [a for a in d.complete(first) if isinstance(a, FreeKV)]
    d.complete()
    assert d.complete() == freed(0, "long", (0,), "aborted")
    d.finish()


def test_who_gives_way_lets_its_chunks_through_first() -> None:
    d = driver(tpot_slo_s=0.1005)
    d.arrive(900, 2, "long", service=ServiceLevel(ttft_s=1e6))
    first = d.model.started[0]
    d.complete(first)
    second = d.model.started[-1]
    d.arrive(300, 2, "short", service=ServiceLevel(ttft_s=1e-3))
    d.complete(second)
    assert segments(d.complete(first)) == [], "a chunk more would put it off"
    actions = d.complete(second)
    assert actions[:2] == freed(0, "long", (0,), "preempted")
    assert segments(actions)[0][0] == "short"
    d.finish()


@pytest.mark.parametrize("policy", ["medha", "sarathi", "elastic_fcfs"])
@pytest.mark.parametrize("stages", [1, 2, 4])
def test_time_to_first_token_of_a_long_prompt(policy: str, stages: int) -> None:
    """In chunks the stages share its work: T / stages, and the last chunk's way. Whole, they only take turns."""
    config = configured(policy, num_instances=1, pp=stages, kv_tokens=10_000, chunk_size=50, tpot_slo_s=0.0505)

    def seconds(work: Work) -> float:
        assert isinstance(work, RunBatch)
        return batch_seconds(work, MODEL)

    played = play(Scheduler(config, cost_model=MODEL), [(0.0, RequestArrived("long", 4000, 1))], seconds)
    chunk_s = 4.0 if policy == "elastic_fcfs" else 0.05
    assert played["long"].ttft_s == pytest.approx((4.0 + (stages - 1) * chunk_s) / stages)


class Watched(Driver):
    """Sees to it that nobody is preempted while slots may come back from a later stage of its instances."""

    num_preempted = 0

    def _submit(self, action: Action) -> None:
        if isinstance(action, StopRequest) and action.reason == "preempted":
            self.num_preempted += 1
            assert not any(self.model.later[instance] for instance in action.instances)
        super()._submit(action)


@pytest.mark.parametrize("policy", ["replicated", "static_tp", "static_sp", "distserve"])
def test_a_request_waits_for_slots_that_may_come_back_from_a_later_stage(policy: str) -> None:
    preempted = 0
    for seed in range(20):
        config = SchedulerConfig(num_instances=2, kv_tokens=30, pp=2, policy=policy, decode_headroom=0)
        d = Watched(config, seed=seed)
        for number in range(12):
            d.arrive(d.rng.randint(1, 14), d.rng.randint(1, 15))
            if number % 4 == 3:
                d.abort(f"r{number - 2}")
            for _ in range(d.rng.randrange(4)):
                if d.model.started:
                    d.complete(d.rng.choice(d.model.started), stop=0.05)
        d.finish(in_order=False)
        preempted += d.num_preempted
    assert preempted > 0
