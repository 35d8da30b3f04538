"""The observer: its log is what a writer beside the engine would write, and nothing that befalls it is the engine's."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from longspan.core.decision import Decision
from longspan.core.events import RequestAborted, RequestArrived
from longspan.core.inventory import Inventory
from longspan.engine.observer import line
from longspan.engine.observer import observation as observation_module
from longspan.engine.observer.messages import Watch
from longspan.engine.observer.observation import Observation, ObservedView
from longspan.metrics.event_log import EventLogWriter, open_log, read_event_log, replay
from tests.event_log.runs import CONFIG, Record, a_busy_day, a_day_of_talks, records_of
from tests.processes import is_alive, wait_until

NOTHING = Inventory({0: "up"}, [], [], {}, [])
GIVEN = RequestAborted("a" * 200)


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a loaded machine even the beginning of a process takes its time."""
    monkeypatch.setattr(observation_module, "END_S", 120.0)


@pytest.fixture
def observation() -> Iterator[Observation]:
    observation = Observation()
    yield observation
    observation.close()


def begin(observation: Observation, path: Path, **options: Any) -> None:
    observation.begin_log(path, partial(open_log, path, CONFIG, **options))


def the_one_warning(caplog: pytest.LogCaptureFixture) -> str:
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert "switched off; serving goes on" in record.getMessage()
    return record.getMessage()


# the log


@pytest.mark.parametrize("driver", [a_busy_day, a_day_of_talks])
@pytest.mark.parametrize("name", ["log", "log.gz"])
def test_the_log_is_the_same_byte_for_byte(observation: Observation, tmp_path: Path, driver: Any, name: str) -> None:
    """Also where it goes on in pieces."""
    played, options = driver(), {"run": "a run", "max_bytes": 5000}
    records = records_of(played)
    observation.begin_log(tmp_path / name, partial(open_log, tmp_path / name, played.config, **options))
    for place in range(0, len(records), 7):
        observation.read(records[place : place + 7])
    observation.close()
    (tmp_path / "apart").mkdir()
    with EventLogWriter(tmp_path / "apart" / name, played.config, **options) as writer:
        for record in records:
            writer.write(*record)
    assert (observation.num_errors, observation.pid) == (0, None)
    pieces = read_event_log(tmp_path / name).pieces
    assert len(pieces) > 2
    for piece in pieces:
        expected = (tmp_path / "apart" / piece.path.name).read_bytes()
        if name == "log":
            assert piece.path.read_bytes() == expected
    assert [(r.now, r.event, r.actions, r.why) for r in read_event_log(tmp_path / name)] == [
        (r.now, r.event, r.actions, r.why) for r in read_event_log(tmp_path / "apart" / name)
    ]


def test_an_engine_that_is_killed_leaves_what_it_handed_over_and_no_process(tmp_path: Path) -> None:
    code = f"""
import os, signal, sys
from functools import partial
from pathlib import Path
from longspan.engine.observer.observation import Observation
from longspan.metrics.event_log import open_log
from tests.event_log.runs import a_busy_day, records_of
played, observation = a_busy_day(), Observation()
path = Path({str(tmp_path / "log")!r})
observation.begin_log(path, partial(open_log, path, played.config))
observation.read(records_of(played))
print(observation.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, timeout=100)
    assert killed.returncode == -signal.SIGKILL
    wait_until(lambda: not is_alive(int(killed.stdout)))
    log = read_event_log(tmp_path / "log")
    assert len(list(log)) == len(records_of(a_busy_day())) and log.truncated_line is None
    assert replay(tmp_path / "log") is None


def test_signals_to_all_processes_of_a_server_are_the_engine_s(observation: Observation, tmp_path: Path) -> None:
    begin(observation, tmp_path / "log")
    assert observation.pid is not None
    wait_until(lambda: (tmp_path / "log").stat().st_size > 0)  # it is there
    for number in (signal.SIGTERM, signal.SIGINT):
        os.kill(observation.pid, number)
    observation.read([(1.0, GIVEN, (), ())])
    observation.close()
    assert len(list(read_event_log(tmp_path / "log"))) == 1 and not observation.num_errors


def test_one_that_is_killed_ends_the_log_alone(
    observation: Observation, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    begin(observation, tmp_path / "log")
    assert observation.pid is not None
    os.kill(observation.pid, signal.SIGKILL)
    wait_until(lambda: bool(observation.hurry() or observation.num_errors))
    observation.read([(1.0, GIVEN, (), ())])
    assert "the process that writes it has ended" in the_one_warning(caplog)
    assert observation.pid is None


def test_one_that_stands_still_keeps_nobody_waiting(
    observation: Observation, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line, "MOST_PENDING_BYTES", 2 << 20)
    begin(observation, tmp_path / "log")
    assert observation.pid is not None
    os.kill(observation.pid, signal.SIGSTOP)
    for number in range(400):  # 5 MB; would never end, if one of these waited
        observation.read([(float(number), GIVEN, (), ())] * 50)
    assert "does not keep up" in the_one_warning(caplog)
    assert observation.num_errors == 1 and observation.pid is None


def test_what_waits_for_room_is_written_all_the_same(observation: Observation, tmp_path: Path) -> None:
    """It stands still for a while."""
    begin(observation, tmp_path / "log")
    assert observation.pid is not None
    os.kill(observation.pid, signal.SIGSTOP)
    for number in range(400):
        observation.read([(float(number), GIVEN, (), ())] * 50)
    os.kill(observation.pid, signal.SIGCONT)
    observation.close()
    assert len(list(read_event_log(tmp_path / "log"))) == 20_000 and not observation.num_errors


def test_a_disk_that_is_stuck_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A pipe that is open and never read: the end waits for it some seconds."""
    observation, path = Observation(), tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    begin(observation, path)
    observation.read([(float(number), GIVEN, (), ()) for number in range(1000)])  # more than a pipe holds
    observation.close()
    os.close(reader)
    assert "did not take the last" in the_one_warning(caplog) and observation.num_errors == 1


def test_one_that_cannot_be_opened(observation: Observation, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    begin(observation, tmp_path)
    assert observation.num_errors == 1 and observation.pid is None and str(tmp_path) in the_one_warning(caplog)
    observation.read([(1.0, GIVEN, (), ())])


@pytest.mark.parametrize(
    "broken",
    [
        (2.0, RequestAborted("\ud800"), (), ()),
        (2.0, "no event", (), ()),
        (2.0, GIVEN, (), [Decision("step", (), (), {"gain": object()})]),  # type: ignore[dict-item]  # no number
    ],
)
def test_what_cannot_be_sent(
    observation: Observation, tmp_path: Path, caplog: pytest.LogCaptureFixture, broken: Any
) -> None:
    begin(observation, tmp_path / "log")
    observation.read([(1.0, GIVEN, (), ()), broken, (3.0, GIVEN, (), ())])
    observation.close()
    assert observation.num_errors == 1
    the_one_warning(caplog)
    assert [(record.now, record.event) for record in read_event_log(tmp_path / "log")] == [(1.0, GIVEN)]


def test_a_policy_s_reasons_may_be_any_number(observation: Observation, tmp_path: Path) -> None:
    import numpy as np

    given = {"inf": float("inf"), "bool": True, "single": np.float32(0.5), "whole": np.int64(7)}
    begin(observation, tmp_path / "log")
    observation.read([(1.0, GIVEN, (), (Decision("step", (), (), given),))])
    observation.close()
    (record,) = read_event_log(tmp_path / "log")
    assert record.why[0].predicted == given


# those who look


def look(observation: Observation, catch_up: Callable[[], None] = lambda: None) -> Any:
    watch = Watch(observation.next_number(), 1, NOTHING, {}, 0.0, 0.0, None)
    return observation.watching(watch, (), catch_up, lambda: 1.0)


async def frame(view: ObservedView) -> dict[str, Any]:
    told = await asyncio.wait_for(view.frames(None, None), 60)
    return dict(json.loads(told.changes.removeprefix(b"data: ")))


ARRIVALS: list[Record] = [(0.1 * number, RequestArrived(f"r{number}", 7, 9), (), ()) for number in range(3)]


async def test_there_is_a_process_only_while_somebody_looks(observation: Observation) -> None:
    assert observation.pid is None
    with ExitStack() as stack:
        first, second = stack.enter_context(look(observation)), stack.enter_context(look(observation))
        pid = observation.pid
        assert pid is not None and first.catch_up() == 0
        observation.read(ARRIVALS)
        assert (await frame(first))["waiting"] == (await frame(second))["waiting"] == 3 == second.catch_up()
    assert observation.pid is None and not is_alive(pid)
    observation.read(ARRIVALS)
    with look(observation) as later:
        assert (await frame(later))["waiting"] == 0 and observation.pid != pid


async def test_an_answer_is_for_who_asked(observation: Observation, tmp_path: Path) -> None:
    """One asks, and leaves before it is told; then another comes."""
    begin(observation, tmp_path / "log")
    with look(observation) as hasty:
        observation.read(ARRIVALS)
        asked = hasty.frames(None, None)
    assert (await asked).is_over
    with look(observation) as patient:
        assert (await frame(patient))["waiting"] == 0
    await asyncio.to_thread(observation.close)


async def test_a_log_goes_on_when_nobody_looks_any_more(observation: Observation, tmp_path: Path) -> None:
    begin(observation, tmp_path / "log")
    with look(observation) as view:
        observation.read(ARRIVALS[:2])
        assert (await frame(view))["waiting"] == 2
    observation.read(ARRIVALS[2:])
    await asyncio.to_thread(observation.close)
    assert len(list(read_event_log(tmp_path / "log"))) == 3


async def test_who_looks_is_told_when_it_is_over(observation: Observation) -> None:
    """It is killed, and there is another for who looks next; or the engine ends."""
    with look(observation) as view:
        await frame(view)
        assert observation.pid is not None
        os.kill(observation.pid, signal.SIGKILL)
        assert (await asyncio.wait_for(view.frames(None, None), 60)).is_over
        assert (await view.frames(None, None)).is_over
        with look(observation) as other:
            await frame(other)
            assert (await view.frames(None, None)).is_over
            asked = other.frames(None, None)
            observation.end_views()
            assert (await asked).is_over and (await other.frames(None, None)).is_over


async def test_what_the_model_cannot_take_ends_the_page_alone(
    observation: Observation, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    begin(observation, tmp_path / "log")
    with look(observation) as view:
        observation.read([(1.0, "no event", (), ())])  # type: ignore[list-item]  # it cannot be sent
        assert (await asyncio.wait_for(view.frames(None, None), 60)).is_over
