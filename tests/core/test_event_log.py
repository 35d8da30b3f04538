"""The event log reads back exactly, and replays to the identical decisions in any process."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from longspan.config import SchedulerConfig
from longspan.core.events import RequestAborted
from longspan.errors import ReplayError
from longspan.metrics.event_log import Difference, EventLogWriter, read_event_log, replay

from .driver import Driver
from .reading import batches

CONFIG = SchedulerConfig(
    num_instances=4, kv_tokens=60, min_tokens_per_instance=4, max_requests_per_master=2, decode_headroom=2
)


@pytest.fixture
def busy_day() -> Driver:
    """Prefills, decodes, aborts, preemptions, refusals; names that hash differently in each process."""
    driver = Driver(CONFIG, seed=5)
    rng = random.Random(5)
    for number in range(80):
        driver.arrive(rng.choice((3, 20, 150)), rng.randint(1, 100), f"request-{number}")
        if number % 9 == 0:
            driver.abort(f"request-{number // 2}")
        if driver.model.started and number % 3 == 0:
            driver.complete(rng.choice(driver.model.started), stop=0.05)
    driver.finish(stop=0.02, in_order=False)
    assert driver.scheduler.stats().num_preemptions > 0
    return driver


@pytest.fixture
def path(busy_day: Driver, tmp_path: Path) -> Path:
    with EventLogWriter(tmp_path / "events.jsonl", CONFIG) as writer:
        for now, event, actions in busy_day.log:
            writer.write(now, event, actions)
    return tmp_path / "events.jsonl"


def test_it_reads_back_exactly(busy_day: Driver, path: Path) -> None:
    log = read_event_log(path)
    assert log.config == CONFIG
    records = list(log)
    assert [(record.now, record.event, list(record.actions)) for record in records] == busy_day.log
    assert [record.line for record in records] == list(range(2, len(records) + 2))
    assert log.truncated_line is None


def test_floats_keep_every_bit(tmp_path: Path) -> None:
    times = sorted([0.1 + 0.2, 1e-300, 5e-324, 1.7976931348623157e308, 123456789.12345679, 2.0**53 + 2, 0.0])
    with EventLogWriter(tmp_path / "log", CONFIG) as writer:
        for now in times:
            writer.write(now, RequestAborted("a"), [])
    assert [record.now for record in read_event_log(tmp_path / "log")] == times


def test_it_replays_identically_here_and_in_another_process(path: Path) -> None:
    assert replay(path) is None
    check = "import sys; from longspan.metrics.event_log import replay; sys.exit(replay(sys.argv[1]) is not None)"
    for seed in ("1", "12345"):
        environment = os.environ | {"PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", check, str(path)]
        assert subprocess.run(command, env=environment, timeout=60).returncode == 0


def test_a_changed_log_reports_its_first_difference(path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    place = next(n for n, line in enumerate(lines) if n > 50 and b'"group":[1]' in line)
    lines[place] = lines[place].replace(b'"group":[1]', b'"group":[3]', 1)
    path.write_bytes(b"".join(lines))
    difference = replay(path)
    assert isinstance(difference, Difference)
    assert difference.line == place + 1
    assert [batch.group for batch in batches(difference.expected)].count((3,)) == 1
    assert difference.expected != difference.got


def test_a_last_line_cut_short_is_left_out_and_reported(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])
    assert replay(path) is None
    log = read_event_log(path)
    count = len(list(log))
    assert log.truncated_line == count + 2


BROKEN = {
    "no JSON": (b'{"now": 1.0, "event"\n', "truncated|malformed|expected"),
    "no UTF-8": (b'{"now": "\xff"}\n', "UTF-8|utf-8"),
    "not an object": (b"[1]\n", "object"),
    "no actions": (
        b'{"now": 1.0, "event": {"type": "KVMigrated", "migration_id": 1}}\n',
        "missing required field `actions`",
    ),
    "unknown event": (
        b'{"now": 1.0, "event": {"type": "Boom"}, "actions": []}\n',
        r"Invalid value 'Boom' - at `\$\.event\.type`",
    ),
    "missing field": (b'{"now": 1.0, "event": {"type": "KVMigrated"}, "actions": []}\n', "migration_id"),
    "no time": (b'{"event": {"type": "KVMigrated", "migration_id": 1}, "actions": []}\n', "required field `now`"),
    "impossible": (
        b'{"now": 1e9, "event": {"type": "KVMigrated", "migration_id": 1}, "actions": []}\n',
        "the scheduler refuses it: migration 1",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_line_is_named_with_its_cause(path: Path, name: str) -> None:
    line, cause = BROKEN[name]
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:4], line, *lines[4:]]))
    with pytest.raises(ReplayError, match=rf"line 5: .*({cause})"):
        replay(path)


@pytest.mark.parametrize(
    ("header", "cause"),
    [
        (b"", "no header"),
        (b'{"version": 1', "no header"),
        (b'{"version": 99, "config": {}}\n', "version 99"),
        (b'{"version": 1, "config": {"num_instances": 0}}\n', "num_instances is 0"),
        (b'{"version": 1}\n', "SchedulerConfig|object"),
    ],
)
def test_a_broken_header(tmp_path: Path, header: bytes, cause: str) -> None:
    (tmp_path / "log").write_bytes(header)
    with pytest.raises(ReplayError, match=cause):
        read_event_log(tmp_path / "log")
    with pytest.raises(ReplayError, match="No such file"):
        read_event_log(tmp_path / "missing")
