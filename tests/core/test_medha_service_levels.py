"""Service levels and settings of the policy `medha`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from longspan.config import SchedulerConfig
from longspan.core.actions import Action, RunBatch
from longspan.core.costs.load import batch_seconds
from longspan.core.events import Event, RequestArrived
from longspan.core.scheduler import Scheduler
from longspan.errors import ConfigError, RequestError
from longspan.metrics.event_log import EventLogWriter, read_event_log, replay
from longspan.service_level import ServiceLevel
from longspan.simulator.driver import Work
from longspan.simulator.playback import play

from .cost_models import scaling_model
from .driver import Driver
from .medha import driver
from .reading import lengths


def test_the_event_log_keeps_service_levels_and_replays(tmp_path: Path) -> None:
    cost = scaling_model(2)
    d = Driver(SchedulerConfig(num_instances=2, kv_tokens=400, policy="medha"), seed=3, cost_model=cost)
    for number in range(30):
        level = ServiceLevel(ttft_s=0.1 * number or None, tpot_s=0.02 if number % 3 else None, priority=number % 2)
        d.arrive(20 + 7 * number, 1 + number % 5, service=level)
        if number % 2:
            d.complete()
    d.finish()
    with EventLogWriter(tmp_path / "log", d.config, cost) as writer:
        for now, event, actions in d.log:
            writer.write(now, event, actions)
    assert [record.event for record in read_event_log(tmp_path / "log")] == [event for _, event, _ in d.log]
    assert replay(tmp_path / "log") is None


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_a_service_level_that_cannot_be_kept_is_refused(seconds: float) -> None:
    with pytest.raises(RequestError, match=r"ttft_s is .* above 0"):
        ServiceLevel(ttft_s=seconds)
    with pytest.raises(RequestError, match=r"tpot_s is .* above 0"):
        ServiceLevel(tpot_s=seconds)


@pytest.mark.parametrize(
    "setting",
    [{"ttft_slo_factor": 0.5}, {"ttft_slo_floor_s": 0.0}, {"tpot_slo_s": -1.0}],
)
def test_settings_out_of_range_are_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(setting))):
        SchedulerConfig(**setting)


def test_sarathi_counts_tokens() -> None:
    d = driver(policy="sarathi", chunk_size=64)
    assert lengths(d.arrive(100, 3, "a")) == {"a": 64}
    d.arrive(100, 3, "b")
    assert lengths(d.complete()) == {"a": 36, "b": 28}
    assert lengths(d.complete()) == {"a": 1, "b": 63}


def test_play_gives_every_request_its_tokens() -> None:
    cost = scaling_model(2)
    scheduler = Scheduler(SchedulerConfig(num_instances=2, policy="medha"), cost_model=cost)
    arrivals = [(0.1 * n, RequestArrived(f"r{n}", 500 * (n + 1), n + 1)) for n in range(5)]

    def check(now: float, event: Event, actions: list[Action]) -> None:
        scheduler.check_invariants()

    def seconds(work: Work) -> float:
        return batch_seconds(work, cost) if isinstance(work, RunBatch) else cost.migration(work.num_tokens)

    played = play(scheduler, arrivals, seconds, check)
    assert [len(request.token_times) for request in played.values()] == [1, 2, 3, 4, 5]
    assert all(request.ended and request.token_times == sorted(request.token_times) for request in played.values())
