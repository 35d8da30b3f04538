"""Scalings and pauses, beside what a log's own words amount to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import pytest

from longspan.core.actions import Action, RunBatch, Segment, StopRequest
from longspan.core.events import BatchCompleted, Event
from longspan.metrics.elasticity import MOST_HAPPENINGS, Course, Elasticity
from tests.core.driver import Driver
from tests.event_log.runs import CONFIG, MODEL, a_busy_day, a_day_of_talks

Records = Iterable[tuple[float, Event, Sequence[Action]]]


@dataclass
class Told:
    """What a log amounts to: token by token, instance by instance, in no hurry."""

    scalings: list[str] = field(default_factory=list)
    pauses: list[float] = field(default_factory=list)
    recomputed: int = 0
    preemptions: int = 0


@dataclass
class _Life:
    had_kv: set[int] = field(default_factory=set)
    instances: set[int] | None = None
    rests_since: float | None = None


def told(records: Records) -> Told:
    found, lives, batches = Told(), dict[str, _Life](), dict[int, RunBatch]()
    for now, event, actions in records:
        done = batches.pop(event.batch_id) if isinstance(event, BatchCompleted) else None
        for segment in done.segments if done is not None else ():
            if not segment.emits:
                lives[segment.request_id].rests_since = now
        for action in actions:
            if isinstance(action, StopRequest) and action.reason == "preempted":
                found.preemptions += 1
                lives[action.request_id].instances = lives[action.request_id].rests_since = None
            if isinstance(action, RunBatch):
                batches[action.batch_id] = action
                for segment in action.segments:
                    _begin(found, lives.setdefault(segment.request_id, _Life()), segment, now)
    return found


def _begin(found: Told, life: _Life, segment: Segment, now: float) -> None:
    found.recomputed += len(life.had_kv & set(range(segment.start, segment.end)))
    life.had_kv |= set(range(segment.end))
    if life.rests_since is not None and now > life.rests_since:
        found.pauses.append(now - life.rests_since)
    life.rests_since = None
    instances = {*segment.compute, *(kept.instance for kept in segment.store), *(n for n, _ in segment.context)}
    before, life.instances = life.instances, instances
    if before is not None and before != instances:
        more = len(instances) - len(before)
        found.scalings.append("up" if more > 0 else "down" if more else "across")


def count(records: Records) -> tuple[Elasticity, dict[str, Course]]:
    """As an engine does."""
    elasticity, courses, batches = Elasticity(), dict[str, Course](), dict[int, RunBatch]()
    for now, event, actions in records:
        for action in actions:
            if isinstance(action, StopRequest) and action.reason == "preempted":
                elasticity.drop(courses[action.request_id], now)
            if isinstance(action, RunBatch):
                batches[action.batch_id] = action
                for segment in action.segments:
                    elasticity.begin(courses.setdefault(segment.request_id, Course()), action, segment, now)
        done = batches.pop(event.batch_id) if isinstance(event, BatchCompleted) else None
        for segment in done.segments if done is not None else ():
            if not segment.emits:
                elasticity.rest(courses[segment.request_id], segment, now)
    return elasticity, courses


def in_chunks(policy: str, seed: int) -> Driver:
    return a_busy_day(replace(CONFIG, policy=policy, num_instances=2, kv_tokens=200), seed, MODEL)


RUNS = {
    "elastic": lambda: a_busy_day(), "elastic, again": lambda: a_busy_day(seed=11), "talks": a_day_of_talks,
    "loongserve": lambda: in_chunks("loongserve", 2), "medha": lambda: in_chunks("medha", 3),
    "longspan": lambda: in_chunks("longspan", 4),
}  # fmt: skip


@pytest.mark.parametrize("run", RUNS)
def test_counts_are_those_of_the_log(run: str) -> None:
    driver = RUNS[run]()
    truth = told(driver.log)
    elasticity, courses = count(driver.log)
    assert elasticity.scalings == {way: truth.scalings.count(way) for way in ("up", "down", "across")}
    assert elasticity.pauses == len(truth.pauses)
    assert elasticity.paused_s == pytest.approx(sum(truth.pauses))
    happened = [happening.what for course in courses.values() for happening in course.happenings]
    if all(len(course.happenings) < MOST_HAPPENINGS for course in courses.values()):
        assert happened.count("preemption") == truth.preemptions
        assert happened.count("pause") == len(truth.pauses)
        assert len(happened) == truth.preemptions + len(truth.pauses) + len(truth.scalings)


def test_the_runs_have_all_of_it() -> None:
    every = [told(run().log) for run in RUNS.values()]
    assert {way for truth in every for way in truth.scalings} == {"up", "down", "across"}
    assert sum(len(truth.pauses) for truth in every) > 10
    assert sum(truth.recomputed for truth in every) > 100


def test_what_is_kept_of_one_request_is_bounded() -> None:
    elasticity, course = Elasticity(), Course()
    for number in range(3 * MOST_HAPPENINGS):
        segment = Segment("r", number, 1, (number % 2,), ())
        elasticity.begin(course, RunBatch(number, (number % 2,), (segment,)), segment, float(number))
    assert len(course.happenings) == MOST_HAPPENINGS
    assert elasticity.scalings["across"] == 3 * MOST_HAPPENINGS - 1
