"""A log that cannot be written is switched off, told, and counted; its writer goes on, and is never kept waiting."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from longspan.config import EngineConfig, SchedulerConfig
from longspan.core.decision import Decision
from longspan.core.events import RequestAborted, RequestArrived
from longspan.errors import ConfigError
from longspan.files import check_writable
from longspan.metrics.event_log import EventLogWriter, background_file, read_event_log, replay
from longspan.metrics.prometheus import ServerMetrics
from longspan.outputs import EngineStats

CONFIG = SchedulerConfig(policy="elastic_fcfs")
ARRIVED = RequestArrived("a" * 200, 1, 1)


def write(path: Path | str, count: int = 10, **options: Any) -> EventLogWriter:
    """That it raises nothing is what is tested."""
    writer = EventLogWriter(path, CONFIG, **options)
    for number in range(count):
        writer.write(float(number), ARRIVED, [])
    writer.flush()
    writer.close()
    return writer


def the_one_warning(caplog: pytest.LogCaptureFixture) -> str:
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert "switched off; serving goes on" in record.getMessage()
    return record.getMessage()


OPENED_IN_VAIN: dict[str, Callable[[Path], Path | str]] = {
    "a folder": lambda folder: folder,
    "no folder": lambda folder: folder / "none" / "log",
    "under a file": lambda folder: _touched(folder / "file") / "log",
    "a name too long": lambda folder: folder / ("x" * 300),
    "a name that is none": lambda folder: f"{folder}/\0",
    "a pipe that nothing reads": lambda folder: _piped(folder / "pipe"),
    "a full disk": lambda folder: "/dev/full",
}


def _touched(path: Path) -> Path:
    path.touch()
    return path


def _piped(path: Path) -> Path:
    os.mkfifo(path)
    return path


@pytest.mark.parametrize("name", OPENED_IN_VAIN)
def test_one_that_cannot_be_opened(tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str) -> None:
    writer = write(OPENED_IN_VAIN[name](tmp_path))
    assert writer.errors == 1 and not writer.is_on
    the_one_warning(caplog)


@pytest.mark.parametrize("name", ["log", "log.gz"])
def test_a_disk_that_gets_full_leaves_a_log_that_replays(tmp_path: Path, name: str) -> None:
    """Files may have 20,000 bytes; then it is as on a disk without room, at any place in a line."""
    code = """
import logging, resource, signal, sys, random
logging.basicConfig()
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
from longspan.config import SchedulerConfig
from longspan.core.events import RequestAborted, RequestArrived
from longspan.core.scheduler import Scheduler
from longspan.metrics.event_log import EventLogWriter
config = SchedulerConfig(policy="elastic_fcfs")
scheduler, writer = Scheduler(config), EventLogWriter(sys.argv[1], config)
for number in range(2000):
    event = RequestArrived(random.randbytes(32).hex(), 10, 10)
    writer.write(float(number), event, scheduler.handle(event, float(number)))
    if number % 100 == 0:
        writer._file and writer._file.wait_for_room()
writer.close()
print(writer.errors)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / name)], capture_output=True, text=True, timeout=100
    )
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr
    assert os.strerror(errno.EFBIG) in done.stderr and "Traceback" not in done.stderr
    assert (tmp_path / name).stat().st_size == 20_000
    assert len(list(read_event_log(tmp_path / name))) > 50
    assert replay(tmp_path / name) is None


def test_a_pipe_whose_reader_goes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Found when the rest is written, as the file is closed."""
    path = _piped(tmp_path / "pipe")
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    writer = EventLogWriter(path, CONFIG)
    os.close(reader)
    writer.write(1.0, ARRIVED, [])
    writer.close()
    assert writer.errors == 1
    assert os.strerror(errno.EPIPE) in the_one_warning(caplog)


def test_a_disk_that_is_stuck_keeps_nobody_waiting(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pipe that is open and never read. The writer's thread stands still; what is given to it is bounded."""
    monkeypatch.setattr(background_file, "MOST_PENDING_BYTES", 1 << 20)
    path = _piped(tmp_path / "pipe")
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    writer = EventLogWriter(path, CONFIG)
    for number in range(20_000):  # 4 MB; would never end, if one of these waited
        writer.write(float(number), RequestAborted(f"{number:0200}"), [])
    assert writer.errors == 1 and not writer.is_on
    assert "does not keep up" in the_one_warning(caplog)
    writer.close()
    os.close(reader)


def test_a_disk_that_is_stuck_does_not_keep_the_server_from_ending(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _piped(tmp_path / "pipe")
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    writer = EventLogWriter(path, CONFIG)
    for number in range(1000):  # more than a pipe holds
        writer.write(float(number), RequestAborted(f"{number:0200}"), [])
    file = writer._file
    assert file is not None
    file.close(timeout_s=0.2)
    writer.close()
    assert writer.errors == 1
    assert "did not take the last" in the_one_warning(caplog)
    os.close(reader)


@pytest.mark.parametrize("trouble", ["the name is taken", "the folder is gone"])
def test_a_piece_that_cannot_be_begun(tmp_path: Path, caplog: pytest.LogCaptureFixture, trouble: str) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    writer = EventLogWriter(folder / "log", CONFIG, max_bytes=2000)
    if trouble == "the name is taken":
        (folder / "log.2").write_text("mine")
    else:
        folder.rename(tmp_path / "moved")
    for number in range(30):
        writer.write(float(number), RequestAborted(f"{number:0200}"), [])
    writer.close()
    assert writer.errors == 1
    the_one_warning(caplog)
    if trouble == "the name is taken":
        assert (folder / "log.2").read_text() == "mine"
        assert 0 < len(list(read_event_log(folder / "log"))) < 30


def test_what_json_cannot_carry(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    no_number: Any = {"gain": object()}
    for number, (event, why) in enumerate(
        [(RequestAborted("\ud800"), ()), ("no event", ()), (ARRIVED, [Decision("step", (), (), no_number)])]
    ):
        writer = EventLogWriter(tmp_path / f"log{number}", CONFIG)
        writer.write(1.0, RequestAborted("before"), [])
        writer.write(2.0, event, [], why)  # type: ignore[arg-type]
        writer.write(3.0, RequestAborted("after"), [])
        assert writer.errors == 1
        the_one_warning(caplog)
        caplog.clear()
        writer.close()
        assert [record.event for record in read_event_log(tmp_path / f"log{number}")] == [RequestAborted("before")]


def test_a_policy_s_reasons_may_be_any_number(tmp_path: Path) -> None:
    with EventLogWriter(tmp_path / "log", CONFIG) as writer:
        writer.write(1.0, ARRIVED, [], [Decision("step", (), (), {"inf": float("inf"), "bool": True})])
    (record,) = read_event_log(tmp_path / "log")
    assert record.why[0].predicted == {"inf": float("inf"), "bool": 1.0}


def test_who_serves_nobody_may_wait_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background_file, "MOST_PENDING_BYTES", 1 << 16)
    monkeypatch.setattr("longspan.metrics.event_log.writer._ENOUGH_PENDING_BYTES", 1 << 15)
    with EventLogWriter(tmp_path / "log", CONFIG, waits=True) as writer:
        for number in range(5000):
            writer.write(float(number), RequestAborted(f"{number:0200}"), [])
    assert writer.errors == 0
    assert len(list(read_event_log(tmp_path / "log"))) == 5000


def test_looking_whether_a_path_can_be_written_never_removes_what_another_server_has_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It makes the file, and removes it again: but only what it made, though the other one is a moment quicker."""
    path, really_open = tmp_path / "log", Path.open
    others: list[EventLogWriter] = []

    def open_late(self: Path, *arguments: Any, **options: Any) -> Any:
        if self == path and not others:
            others.append(EventLogWriter(path, CONFIG))
        return really_open(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", open_late)
    check_writable(path)
    others[0].close()
    assert others[0].path == path and read_event_log(path).config == CONFIG


def test_sizes_that_are_none() -> None:
    with pytest.raises(ConfigError, match="event_log_max_bytes is 10, but must be at least 4096"):
        EngineConfig(event_log_max_bytes=10)
    with pytest.raises(ConfigError, match="event_log_keep is 0"):
        EngineConfig(event_log_keep=0)


def test_the_counter() -> None:
    stats = EngineStats(0, 0, 0, 1, 1, 0, (0,), event_log_errors=1)
    metrics = ServerMetrics(model_name="m", max_model_len=10, stats=lambda: stats)
    assert b'longspan:event_log_errors_total{engine="0",model_name="m"} 1.0' in metrics.render()[0]
