"""Instances that are lost, leave and join in a simulation: everybody gets what was asked for, and it is told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from longspan.core.events import InstanceJoined, InstanceLeaving, InstanceLost
from longspan.errors import ConfigError
from longspan.metrics.event_log import EventLogWriter, replay
from longspan.profiler.simulated import fit_simulated
from longspan.simulator.fleet_events import FleetTimes, draw_fleet_events, read_fleet_events
from longspan.simulator.simulator import Simulation, Simulator

from .examples import small_world, workload

LONGEST = 3000


def simulate(
    policy: str, events: FleetTimes, *, repair_kv: bool = True, log: Path | None = None
) -> Simulation:
    config, cost = small_world(policy, instances=3)
    config = replace(config, repair_kv=repair_kv, overload="off")
    model = fit_simulated(cost, config, 8000)
    requests = workload(seed=2, number=40, longest=LONGEST, rate=20.0)
    if log is None:
        return Simulator(config, cost, cost_model=model, fleet_events=events).run(requests)
    with EventLogWriter(log, config, model, run="test") as writer:
        return Simulator(config, cost, cost_model=model, event_log=writer, fleet_events=events).run(requests)


def losses(kv_tokens: int = 4096) -> FleetTimes:
    return [
        (0.5, InstanceLost(1)), (0.8, InstanceJoined(1, kv_tokens)), (0.9, InstanceLeaving(2)),
        (1.0, InstanceLost(0)), (1.2, InstanceJoined(0, kv_tokens)),
    ]  # fmt: skip


@pytest.mark.parametrize("policy", ["longspan", "medha", "elastic_fcfs", "vllm", "longspan:team=2"])
def test_everyone_gets_what_was_asked_for(policy: str, tmp_path: Path) -> None:
    quiet, hit = simulate(policy, ()), simulate(policy, losses(), log=tmp_path / "log")
    asked = sorted((r.record.arrived_s, len(r.record.token_times_s)) for r in quiet.requests)
    assert sorted((r.record.arrived_s, len(r.record.token_times_s)) for r in hit.requests) == asked
    assert quiet.losses.num_lost == quiet.losses.num_void == 0
    assert hit.losses.num_lost >= 2 and hit.losses.num_void > 0
    assert hit.losses.recomputed > quiet.losses.recomputed
    assert replay(tmp_path / "log") is None
    again = simulate(policy, losses())
    assert again.records() == hit.records() and again.losses.recomputed == hit.losses.recomputed


def test_whole_requests_cost_more() -> None:
    some, whole = simulate("longspan", losses()), simulate("longspan", losses(), repair_kv=False)
    assert sum(request.num_preemptions for request in whole.requests) > 0
    assert whole.losses.recomputed >= some.losses.recomputed > 0


def test_what_never_fits_again_is_refused() -> None:
    result = simulate("elastic_fcfs", [(0.2, InstanceLost(0, False)), (0.3, InstanceLost(1, False)),
                                       (0.4, InstanceLost(2, False))])  # fmt: skip
    assert len(result.requests) == 40
    assert {request.refusal for request in result.requests} - {None} == {"fleet_too_small"}


def test_drawn_losses_are_the_same_each_time() -> None:
    events = draw_fleet_events(100.0, 10.0, 8, 4096, 1000.0, 3)
    assert events == draw_fleet_events(100.0, 10.0, 8, 4096, 1000.0, 3)
    assert events != draw_fleet_events(100.0, 10.0, 8, 4096, 1000.0, 4)
    lost = [at for at, event in events if isinstance(event, InstanceLost)]
    assert 40 < len(lost) < 120 and lost == sorted(lost) and lost[-1] < 1000.0
    assert len(events) == 2 * len(lost)


def test_a_file(tmp_path: Path) -> None:
    path = tmp_path / "events"
    path.write_text(
        '{"time": 1.5, "event": "lost", "instance": 1}\n\n{"time": 2, "event": "joined", "instance": 1}\n'
        '{"time": 2, "event": "leaving", "instance": 0}\n{"time": 3, "event": "lost", "instance": 1}\n'
    )
    assert read_fleet_events(path, 2, 100) == [
        (1.5, InstanceLost(1)), (2.0, InstanceJoined(1, 100)), (2.0, InstanceLeaving(0)), (3.0, InstanceLost(1, False))
    ]  # fmt: skip


@pytest.mark.parametrize(("text", "told"), [
    ('{"time": 1, "event": "lost", "instance": 2}', "line 1: there is no instance 2, only 0 to 1"),
    ('{"time": 1, "event": "lost", "instance": 1}\n{"time": 2, "event": "lost", "instance": 1}', "line 2: .*not serve"),
    ('{"time": 1, "event": "joined", "instance": 1}', "line 1: .*it serves then"),
    ('{"time": 2, "event": "lost", "instance": 1}\n{"time": 1, "event": "joined", "instance": 1}', "line 2: .*order"),
    ('{"time": -1, "event": "lost", "instance": 1}', "line 1: .*from 0 on"),
    ('{"time": 1, "event": "gone", "instance": 1}', "line 1: Invalid enum value"),
    ("nonsense", "line 1: JSON is malformed"),
])  # fmt: skip
def test_what_a_file_cannot_tell(text: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "events"
    path.write_text(text)
    with pytest.raises(ConfigError, match=told):
        read_fleet_events(path, 2, 100)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_fleet_events(tmp_path / "none", 2, 100)
