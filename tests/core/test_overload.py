"""Requests whose first token would come later than `longspan` promises: refused, or served and told of."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from longspan.config import Overload, SchedulerConfig
from longspan.core.actions import Action, RefuseRequest, RunBatch
from longspan.core.costs.load import batch_seconds
from longspan.core.decision import SERVED_LATE, Decision
from longspan.core.events import Event, RequestArrived
from longspan.core.internal_error import InternalError
from longspan.core.news import News
from longspan.core.policies.elastic_fcfs import ElasticFcfs
from longspan.core.scheduler import Scheduler
from longspan.core.state import SchedulerState
from longspan.errors import ConfigError, RequestError
from longspan.metrics.event_log import EventLogWriter, replay
from longspan.service_level import IfLate, ServiceLevel
from longspan.simulator.driver import Work
from longspan.simulator.playback import Played, play

from .cost_models import scaling_model

HARDLY_ANY_TIME = "longspan:promise_factor=1:promise_floor_s=1e-6"
ALONE, CROWD = 30, 20
COST = scaling_model(1)


@dataclass
class Course:
    """What a scheduler did with requests that come alone, by which it learns what its quotes are worth, and then with
    a crowd that comes at once."""

    played: dict[str, Played]
    steps: list[tuple[float, Event, list[Action]]] = field(default_factory=list)
    why: list[Decision] = field(default_factory=list)

    @property
    def refused(self) -> dict[str, RefuseRequest]:
        return {a.request_id: a for _, _, actions in self.steps for a in actions if isinstance(a, RefuseRequest)}

    @property
    def served_late(self) -> set[str]:
        return {decision.request_ids[0] for decision in self.why if decision.step == SERVED_LATE}


def serve(overload: Overload, if_late: IfLate | None = None) -> Course:
    config = SchedulerConfig(num_instances=1, kv_tokens=200_000, policy=HARDLY_ANY_TIME, overload=overload)
    scheduler = Scheduler(config, cost_model=COST)
    patient = ServiceLevel(if_late="serve")
    crowd = ServiceLevel(if_late=if_late)
    arrivals = [(2.0 * n, RequestArrived(f"alone-{n}", 1000, 2, patient)) for n in range(ALONE)]
    arrivals += [(2.0 * ALONE + 0.01 * n, RequestArrived(f"crowd-{n}", 4000, 2, crowd)) for n in range(CROWD)]
    course = Course({})

    def seconds(work: Work) -> float:
        assert isinstance(work, RunBatch)
        return batch_seconds(work, COST)

    def on_step(now: float, event: Event, actions: list[Action]) -> None:
        course.steps.append((now, event, actions))
        course.why.extend(scheduler.decisions)

    course.played = play(scheduler, arrivals, seconds, on_step)
    assert scheduler.idle()
    return course


@pytest.mark.parametrize("if_late", [None, "refuse"])
def test_who_would_be_late_is_refused_and_told_when_to_come_again(if_late: IfLate | None) -> None:
    course = serve("enforce", if_late)
    assert course.refused and all(name.startswith("crowd") for name in course.refused)
    for refusal in course.refused.values():
        assert refusal.reason == "late"
        assert refusal.retry_after_s is not None and refusal.retry_after_s > 0
        assert "overloaded" in refusal.message and "try again in" in refusal.message
        assert "try again in 0 s" not in refusal.message
    for _, event, actions in course.steps:
        whom = [action.request_id for action in actions if isinstance(action, RefuseRequest)]
        assert not whom or (isinstance(event, RequestArrived) and whom == [event.request_id])  # at once
    served = {name for name, request in course.played.items() if request.ended}
    assert served == course.played.keys() - course.refused.keys()
    assert all(not course.played[name].token_times for name in course.refused)


def test_who_asks_to_be_served_is() -> None:
    course = serve("enforce", "serve")
    assert not course.refused
    assert all(request.ended for request in course.played.values())
    assert course.served_late


def test_warning_serves_and_tells_the_same_that_would_be_refused_first() -> None:
    warned, enforced = serve("warn"), serve("enforce")
    assert not warned.refused
    assert all(request.ended for request in warned.played.values())
    told = [name for name in warned.played if name in warned.served_late and name.startswith("crowd")]
    assert told[0] == next(iter(enforced.refused))
    assert all(decision.predicted["late_s"] > 0 for decision in warned.why if decision.step == SERVED_LATE)


def test_off_says_nothing() -> None:
    course = serve("off")
    assert not course.refused and not course.served_late
    assert all(request.ended for request in course.played.values())
    assert any(decision.step == "promise" for decision in course.why)


def test_refusals_and_lateness_replay(tmp_path_factory: pytest.TempPathFactory) -> None:
    both: tuple[Overload, ...] = ("enforce", "warn")
    for overload in both:
        path = tmp_path_factory.mktemp("logs") / overload
        config = SchedulerConfig(num_instances=1, kv_tokens=200_000, policy=HARDLY_ANY_TIME, overload=overload)
        with EventLogWriter(path, config, COST) as writer:
            for now, event, actions in serve(overload).steps:
                writer.write(now, event, actions)
        assert replay(path) is None


def test_a_setting_that_there_is_not() -> None:
    with pytest.raises(ConfigError, match="overload is 'maybe', but must be one of off, warn, enforce"):
        SchedulerConfig(overload="maybe")  # type: ignore[arg-type]  # as what is read from a file may be
    with pytest.raises(RequestError, match="if_late is 'never', but must be refuse or serve") as refused:
        ServiceLevel(if_late="never")  # type: ignore[arg-type]  # as a program without types may say
    assert refused.value.param == "if_late"


@pytest.mark.parametrize("seconds", [-1.0, float("inf"), float("nan")])
def test_nobody_can_come_again_at_such_a_time(seconds: float) -> None:
    class Refuses(ElasticFcfs):
        def schedule(self, state: SchedulerState, news: News, now: float) -> None:
            for request in news.arrived:
                state.refuse(request.id, "not now", "late", seconds)

    with pytest.raises(InternalError, match="shall come again after"):
        Scheduler(SchedulerConfig(), Refuses()).handle(RequestArrived("r", 5, 5), 0.0)
