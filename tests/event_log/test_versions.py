"""Logs of older versions read, and replay to the same decisions."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from longspan.core.actions import (
    FreeKV,
    MigrateKV,
    RefuseRequest,
    RunBatch,
    StopRequest,
)
from longspan.core.events import (
    BatchCompleted,
    FirstStageFree,
    KVMigrated,
    RequestAborted,
    RequestArrived,
)
from longspan.metrics.event_log import EventLogWriter, read_event_log, replay
from tests.core.driver import Driver
from tests.event_log.runs import (
    write,
)

OLD_LOGS = Path(__file__).parents[1] / "data" / "event_logs"


@pytest.mark.parametrize("path", sorted(OLD_LOGS.glob("v1_*")), ids=lambda path: path.name)
def test_logs_of_version_1_replay_and_say_the_same_in_this_one(path: Path, tmp_path: Path) -> None:
    log = read_event_log(path)
    assert replay(path) is None
    records = list(log)
    assert len(records) > 80
    with EventLogWriter(tmp_path / "log", log.config, log.cost_model) as writer:
        for record in records:
            writer.write(record.now, record.event, record.actions, record.why)
    again = list(read_event_log(tmp_path / "log"))
    assert [(r.now, r.event, r.actions, r.why) for r in again] == [(r.now, r.event, r.actions, r.why) for r in records]
    assert replay(tmp_path / "log") is None
    assert 3 * (tmp_path / "log").stat().st_size < len(gzip.decompress(path.read_bytes()))


def test_the_pieces_of_a_log_of_version_2_replay() -> None:
    """Its later pieces do not say which residences are there: that follows from those before."""
    for path in OLD_LOGS.glob("v2_pieces*"):
        log = read_event_log(path)
        assert len(log.pieces) == 3
        assert replay(path) is None


def test_the_logs_of_version_1_hold_everything() -> None:
    seen = set()
    for path in OLD_LOGS.glob("v1_*"):
        for record in read_event_log(path):
            seen |= {type(record.event), *map(type, record.actions)}
            seen |= {action.reason for action in record.actions if isinstance(action, StopRequest)}
    assert seen == {
        RequestArrived, RequestAborted, FirstStageFree, BatchCompleted, KVMigrated, RunBatch, MigrateKV, FreeKV,
        StopRequest, RefuseRequest, "finished", "aborted", "preempted",
    }  # fmt: skip


@pytest.mark.parametrize("version", [1, 2])
def test_options_of_old_logs_that_are_unknown_or_renamed_are_told(
    tmp_path: Path, busy_day: Driver, monkeypatch: pytest.MonkeyPatch, version: int
) -> None:
    from longspan.metrics.event_log import conversion

    monkeypatch.setitem(conversion.RENAMED_OPTIONS, "headroom", "decode_headroom")
    if version == 2:
        text = write(tmp_path / "new", busy_day).read_bytes()
    else:
        text = gzip.decompress((OLD_LOGS / "v1_elastic_fcfs.jsonl.gz").read_bytes())
    assert text.count(b'"decode_headroom":2') == 1
    path = tmp_path / "log"
    path.write_bytes(text.replace(b'"decode_headroom":2', b'"headroom":2,"shoe_size":[44]'))
    log = read_event_log(path)
    assert log.config.decode_headroom == 2
    assert log.notes == [
        "its option headroom is called decode_headroom now",
        "its option shoe_size = [44] is unknown to this version of Longspan, and left out",
    ]
    assert replay(path) is None
