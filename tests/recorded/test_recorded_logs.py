"""The scheduler decides as it did when the logs were recorded; and between them they reach all that policies can do."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from longspan.core.actions import Action, RunBatch, StopRequest
from longspan.core.policies import MOVED_SETTINGS, create_policy
from longspan.core.state import SchedulerState
from longspan.errors import ReplayError
from longspan.metrics.event_log import EventLog, EventLogWriter, LogRecord, replay
from longspan.metrics.event_log.replaying import replay_log
from tests.core.settings import EVERY_POLICY
from tests.recorded.features import FEATURES, features
from tests.recorded.record import LOGS, path_of
from tests.recorded.runs import RUNS

MOST_BYTES = 700_000
LOONGSERVE = {name for name in EVERY_POLICY if name.startswith("loongserve")}
WHOLE_PROMPTS = {"distserve", "elastic_fcfs", "fastserve", "replicated", "static_sp", "static_tp", *LOONGSERVE}
ONE_INSTANCE_EACH = {"alise", "distserve", "fastserve", "replicated", "splitfuse", "ssjf", "static_tp", "vllm"}
RESERVING = {
    "alise", "edf", "fcfs", "fsp", "least_slack", "medha", "preflow", "qoserve", "sarathi", "splitfuse", "srpt", "ssjf",
    "vllm",
}  # fmt: skip
CANNOT: dict[str, list[tuple[str, set[str]]]] = {
    "migration": [
        ("a request stays where it began", ONE_INSTANCE_EACH - {"distserve"}),
        ("its KV stays where it was stored", {"elastic_fcfs", "static_sp"}),
        ("nobody gives way to who waits", {"sarathi"}),
    ],
    "chunks": [("prompts are prefilled whole", WHOLE_PROMPTS)],
    "shards": [
        ("prompts are prefilled whole", WHOLE_PROMPTS - ONE_INSTANCE_EACH),
        ("a request's KV is on one instance", ONE_INSTANCE_EACH),
    ],
    "group": [("each instance runs alone", ONE_INSTANCE_EACH)],
    "masters": [("each instance runs alone", ONE_INSTANCE_EACH)],
    "out of order": [("all instances run one batch at a time", {"static_sp"})],
}  # fmt: skip
"""Of `FEATURES`, what some policies never show, and why. Everything else every policy does in some log."""


@functools.cache
def records(name: str) -> tuple[EventLog, list[LogRecord]]:
    log = EventLog(path_of(name))
    return log, list(log)


@pytest.mark.parametrize("name", RUNS)
def test_it_is_decided_as_it_was(name: str) -> None:
    log = EventLog(path_of(name))
    difference = replay_log(log, RUNS[name].own_policy())
    assert difference is None, "\n".join(difference.lines())
    known = RUNS[name].policy in EVERY_POLICY
    assert log.policy == (create_policy(RUNS[name].policy).name if known else RUNS[name].policy)
    assert log.truncated_line is None
    renamed = (f"policy {RUNS[name].policy} is written", *(f"option {option} is written" for option in MOVED_SETTINGS))
    assert all(any(f"its {what}" in note for what in renamed) for note in log.notes)


def test_every_policy_occurs_in_every_source() -> None:
    found: dict[str, set[str]] = {}
    for name in RUNS:
        log, lines = records(name)
        assert lines
        run = log.pieces[0].header.run
        found.setdefault(run if run in ("driver", "simulator") else "engine", set()).add(log.pieces[0].header.policy)
    assert set(found) == {"driver", "simulator", "engine"}
    assert all(policies >= set(EVERY_POLICY) for policies in found.values())


@pytest.mark.parametrize("policy", EVERY_POLICY)
def test_a_policy_does_all_that_it_can(policy: str) -> None:
    """And nothing that it is said not to do."""
    seen: set[str] = set()
    for name, run in RUNS.items():
        if run.policy == policy:
            log, lines = records(name)
            seen |= features(log.config, lines)
    cannot = {feature for feature, why in CANNOT.items() if any(policy in policies for _, policies in why)}
    assert seen == set(FEATURES) - cannot


def of_another_instance(action: Action, instances: int) -> Action | None:
    if not isinstance(action, RunBatch) or len(action.segments[0].compute) != 1:
        return None
    first, *others = action.segments
    return replace(action, segments=(replace(first, compute=((first.compute[0] + 1) % instances,)), *others))


def aborted(action: Action, instances: int) -> Action | None:
    is_stop = isinstance(action, StopRequest) and action.reason == "finished"
    return replace(action, reason="aborted") if is_stop else None


@pytest.mark.parametrize("change", [of_another_instance, aborted])
@pytest.mark.parametrize("name", ["medha-crowd", "distserve-stages", "loongserve-simulator", "elastic_fcfs-engine"])
def test_a_changed_action_is_noticed(
    name: str, change: Callable[[Action, int], Action | None], tmp_path: Path
) -> None:
    log, lines = records(name)
    *_, (place, changed) = (
        (number, (*record.actions[:i], other, *record.actions[i + 1 :]))
        for number, record in enumerate(lines)
        for i, action in enumerate(record.actions)
        if (other := change(action, log.config.num_instances)) is not None
    )
    with EventLogWriter(tmp_path / "log", log.config, log.cost_model) as writer:
        for number, record in enumerate(lines):
            writer.write(record.now, record.event, changed if number == place else record.actions)
    assert writer.errors == 0
    difference = replay(tmp_path / "log")
    assert difference is not None
    assert (difference.line, difference.expected, difference.got) == (
        lines[place].line, changed, lines[place].actions,
    )  # fmt: skip


@pytest.mark.parametrize("policy", sorted(RESERVING))
def test_reservations_that_are_forgotten_are_noticed(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """So they have an effect in some log of each policy that makes them."""
    monkeypatch.setattr(SchedulerState, "reserve", lambda state, request_id, planned: None)
    noticed = []
    for name, run in RUNS.items():
        if run.policy == policy:
            try:
                noticed.append(replay(path_of(name)) is not None)
            except ReplayError:  # the books or the policy find out
                noticed.append(True)
    assert any(noticed)


def test_the_logs_are_those_of_the_runs_and_small() -> None:
    paths = sorted(LOGS.iterdir())
    assert paths == sorted(path_of(name) for name in RUNS)
    assert sum(path.stat().st_size for path in paths) <= MOST_BYTES
