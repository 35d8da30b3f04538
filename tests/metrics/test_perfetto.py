"""A trace for Perfetto, read back: it says what the log says, by its stories and by a scheduler that replays it."""

from __future__ import annotations

import json
from collections import defaultdict
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from longspan.config import SchedulerConfig
from longspan.core.actions import CancelBatch, FreeKV, KVRange, MigrateKV, RunBatch, Segment, StopRequest
from longspan.core.events import BatchCompleted, InstanceJoined, InstanceLost, RequestArrived, TokenOutput
from longspan.core.hierarchy import make_scheduler
from longspan.core.policies import create_policy
from longspan.entrypoints import cli
from longspan.metrics.event_log import EventLog, EventLogWriter
from longspan.metrics.explain import explain_all
from longspan.metrics.perfetto import export_trace
from tests.event_log.runs import a_busy_day, write
from tests.recorded.record import path_of

LOGS = [
    "elastic_fcfs-crowd", "loongserve-engine", "longspan-simulator", "medha-half_done", "vllm-crowd", "longspan-stages",
]  # fmt: skip
KINDS = {"waits": "queue", "pauses": "pause", "migrates": "migrate", "prefill": "prefill", "decode": "decode"}
EPSILON = 2e-3  # microseconds: times are rounded to thousandths of them

Trace = list[dict[str, Any]]


def exported(log: EventLog) -> Trace:
    text = StringIO()
    count = export_trace(log, text)
    events: Trace = json.loads(text.getvalue())["traceEvents"]
    assert count == len({event["tid"] for event in events if event["name"] == "arrives"})
    return events


def tracks(events: Trace, process: str) -> dict[str, Trace]:
    """Slices of each track, by its name, in order; tracks may have the same name."""
    (pid,) = [e["pid"] for e in events if e["name"] == "process_name" and e["args"]["name"] == process]
    names = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name" and e["pid"] == pid}
    found: dict[int, Trace] = {tid: [] for tid in names}
    for event in events:
        if event["ph"] == "X" and event["pid"] == pid:
            found[event["tid"]].append(event)
    return {f"{names[tid]}#{tid}": sorted(slices, key=lambda e: e["ts"]) for tid, slices in found.items()}


def merged(slices: list[tuple[str, float, float]]) -> list[tuple[str, float, float]]:
    """Those that follow each other at once, and are of a kind, as one; none that take no time."""
    found: list[tuple[str, float, float]] = []
    for kind, start, end in slices:
        if found and found[-1][0] == kind and abs(found[-1][2] - start) < EPSILON:
            found[-1] = (kind, found[-1][1], end)
        elif end > start:
            found.append((kind, start, end))
    return found


@pytest.mark.parametrize("name", LOGS)
def test_slices_never_overlap(name: str) -> None:
    events = exported(EventLog(path_of(name)))
    for process in ("instances", "requests"):
        for track, slices in tracks(events, process).items():
            if process == "requests" and "stages" in name:
                continue  # the next chunk of a prompt may follow it through the stages
            for one, other in pairwise(slices):
                assert one["ts"] + one["dur"] <= other["ts"] + EPSILON, (track, one, other)


@pytest.mark.parametrize("name", LOGS[:-1])
def test_requests_are_as_their_stories_tell(name: str) -> None:
    log = EventLog(path_of(name))
    begin = next(iter(log)).now
    ids = [record.event.request_id for record in log if isinstance(record.event, RequestArrived)]
    own = {track.rpartition("#")[0]: slices for track, slices in tracks(exported(log), "requests").items()}
    assert list(own) == ids
    compared = 0
    for story in explain_all(log, ids):
        if story.chapters[-1].detail == "aborted by the client":
            continue  # whose last batch the story leaves out
        told = [(KINDS[chapter.kind], (chapter.start - begin) * 1e6, (chapter.end - begin) * 1e6)
                for chapter in story.chapters if chapter.kind in KINDS]  # fmt: skip
        drawn = [(e["name"], e["ts"], e["ts"] + e["dur"]) for e in own[story.request_id]]
        told, drawn = merged(told), merged(drawn)
        assert [kind for kind, _, _ in drawn] == [kind for kind, _, _ in told], story.request_id
        for one, other in zip(drawn, told, strict=True):
            assert one[1:] == pytest.approx(other[1:], abs=EPSILON)
        compared += len(told)
    assert compared > len(ids)


@pytest.mark.parametrize("name", LOGS)
def test_instances_run_what_the_log_has(name: str) -> None:
    log = EventLog(path_of(name))
    expected: dict[tuple[str, int], int] = defaultdict(int)
    for record in log:
        for action in record.actions:
            if isinstance(action, RunBatch):
                expected["batch", action.batch_id] += len(action.group)
            if isinstance(action, MigrateKV):
                expected["migration", action.migration_id] += 2
    drawn: dict[tuple[str, int], int] = defaultdict(int)
    found = tracks(exported(log), "instances")
    for track, slices in found.items():
        for event in slices if "stages" not in track else ():
            kind = "batch" if "batch" in event["args"] else "migration"
            drawn[kind, event["args"][kind]] += 1
            assert kind == "migration" or int(track.split("#")[0].split()[-1]) in event["args"]["group"]
    assert drawn == expected
    assert [track.split("#")[0] for track in found if "stages" not in track] == [
        f"instance {number}" for number in range(log.config.num_instances)  # idle ones, too
    ]


@pytest.mark.parametrize("name", LOGS)
def test_counters_are_those_of_the_scheduler(name: str) -> None:
    log = EventLog(path_of(name))
    scheduler = make_scheduler(log.config, create_policy(log.config.policy), log.cost_model)
    counters = [event for event in exported(log) if event["ph"] == "C"]
    records = list(log)
    at = [round((record.now - records[0].now) * 1e6, 3) for record in records]
    drawn: dict[str, float] = {}
    place = compared = 0
    for number, record in enumerate(records):
        scheduler.handle(record.event, record.now)
        if at[number : number + 1] == at[number + 1 : number + 2]:
            continue  # the trace cannot tell them apart
        while place < len(counters) and counters[place]["ts"] <= at[number]:
            (drawn[counters[place]["name"]],) = counters[place]["args"].values()
            place += 1
        stats = scheduler.stats()
        assert drawn["requests waiting"] == stats.num_waiting, number
        slots = [used + cached for used, cached in zip(stats.kv_tokens_used, stats.kv_tokens_cached, strict=True)]
        assert [drawn[f"KV slots, instance {each}"] for each in range(len(slots))] == slots, number
        compared += any(slots)
    assert place == len(counters) and compared > 20


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log, out = write(tmp_path / "log.jsonl", a_busy_day()), tmp_path / "trace.json"
    assert cli.run(["export-trace", str(log), "-o", str(out)]) == 0
    assert "80 requests on 4 instances" in capsys.readouterr().out
    assert json.loads(out.read_text())["traceEvents"]
    assert cli.run(["export-trace", str(log), "-o", str(tmp_path / "no" / "trace.json")]) == cli.BAD_USAGE
    assert "there is no folder" in capsys.readouterr().err
    assert cli.run(["export-trace", str(out), "-o", str(tmp_path / "other.json")]) == cli.FAILED


def test_an_instance_that_is_lost_takes_its_slots_along(tmp_path: Path) -> None:
    config = SchedulerConfig(policy="elastic_fcfs", num_instances=2, kv_tokens=100)
    kept = (KVRange(0, 0, 6), KVRange(1, 6, 10))
    again = Segment("r", 0, 10, (0,), (KVRange(0, 0, 10),), residence=1)
    with EventLogWriter(tmp_path / "log.jsonl", config) as log:
        first = Segment("r", 0, 10, (0, 1), kept, residence=0)
        log.write(1.0, RequestArrived("r", 10, 5), [RunBatch(0, (0, 1), (first,))])
        log.write(2.0, InstanceLost(1), [CancelBatch((0,), (), (0,)), RunBatch(1, (0,), (again,))])
        log.write(3.0, InstanceJoined(2, 100), [])
        done = BatchCompleted(1, (TokenOutput("r", "stop"),))
        log.write(4.0, done, [StopRequest("r", (0,), "finished"), FreeKV(1, (0,))])
    assert log.path is not None
    events = exported(EventLog(log.path))
    slots = [(event["name"][-1], event["ts"] / 1e6, event["args"]["tokens"])
             for event in events if event["name"].startswith("KV slots")]  # fmt: skip
    assert slots == [("0", 0, 6), ("1", 0, 4), ("0", 1, 10), ("1", 1, 0), ("2", 2, 0), ("0", 3, 0)]
    found = tracks(events, "instances")
    assert [len(slices) for slices in found.values()] == [2, 1, 0]
    assert found["instance 1#1000"][0]["args"]["void"]
    (mine,) = tracks(events, "requests").values()
    assert [(event["name"], event["ts"], event["dur"]) for event in mine] == [("void", 0, 1e6), ("prefill", 1e6, 2e6)]


def test_a_run_of_which_a_piece_is_missing(tmp_path: Path) -> None:
    first = write(tmp_path / "log.jsonl", a_busy_day(), max_bytes=20_000, keep=3)
    log = EventLog(first)
    assert log.missing() is not None
    instants = [event for event in exported(log) if event["ph"] == "i"]
    arrived = {record.event.request_id for record in log if isinstance(record.event, RequestArrived)}
    before = {event.request_id for _, event in log.pieces[0].requests}
    assert 0 < len(arrived | before) < 80
    assert len([event for event in instants if event["name"] == "arrives"]) == len(arrived | before)
    ends = [event for event in instants if event["name"] not in ("arrives", "preempted")]
    assert len(ends) == len(arrived | before)
