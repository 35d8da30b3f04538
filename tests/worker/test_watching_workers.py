"""How the engine's end sees workers: who is given up, who is started again and when, and that nobody waits for one."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longspan.executor.outbox import Outbox
from longspan.executor.restarts import FIRST_S, LONGEST_S, Restarts
from longspan.executor.vitals import PATIENCE, Vitals

TIMEOUT_S = 10.0


@pytest.fixture(params=["sleeps", "spins", "is stopped"])
def worker(request: pytest.FixtureRequest) -> Iterator[tuple[str, int]]:
    """What it does, and its process id."""
    program = "while True: pass" if request.param != "sleeps" else "import time; print(flush=True); time.sleep(1000)"
    with subprocess.Popen([sys.executable, "-c", f"print(flush=True)\n{program}"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        if request.param == "sleeps":
            process.stdout.readline()
            while state_of(process.pid) != "S":
                pass
        if request.param == "is stopped":
            os.kill(process.pid, signal.SIGSTOP)
            while state_of(process.pid) != "T":
                pass
        yield request.param, process.pid
        process.kill()


def state_of(pid: int) -> str:
    with open(f"/proc/{pid}/stat") as stat:
        return stat.read().rpartition(")")[2].split()[0]


def looked_at(vitals: Vitals, begin: float, end: float, *, has_work: bool = False) -> str | None:
    """The last of the verdicts, twice a second until then."""
    verdict = None
    for half in range(int(2 * begin), int(2 * end) + 1):
        verdict = vitals.verdict(half / 2, has_work=has_work)
    return verdict


def test_a_silent_worker_is_given_up_unless_it_computes(worker: tuple[str, int]) -> None:
    """One that spins, without a beat, may belong to a machine that has no time for it."""
    does, pid = worker
    vitals = Vitals(pid, TIMEOUT_S, now=0.0)
    assert looked_at(vitals, 0, TIMEOUT_S) is None
    verdict = looked_at(vitals, TIMEOUT_S, TIMEOUT_S + 1)
    if does == "spins":
        assert verdict is None and looked_at(vitals, TIMEOUT_S + 1, PATIENCE * TIMEOUT_S) is None
        verdict = looked_at(vitals, PATIENCE * TIMEOUT_S, PATIENCE * TIMEOUT_S + 1)
    assert verdict is not None and "no sign of life" in verdict


def test_beats_without_progress(worker: tuple[str, int]) -> None:
    """They count where there is work: what has none need not get on."""
    does, pid = worker
    vitals = Vitals(pid, TIMEOUT_S, now=0.0)
    vitals.beat(1, 0.0)
    verdicts = {}
    for half in range(1, int(4 * TIMEOUT_S)):
        vitals.beat(1, half / 2)
        assert vitals.verdict(half / 2, has_work=False) is None
        verdicts[half / 2] = vitals.verdict(half / 2, has_work=True)
    given_up = [at for at, verdict in verdicts.items() if verdict is not None]
    assert (given_up == []) == (does == "spins")
    assert not given_up or (min(given_up) > TIMEOUT_S and "no progress" in (verdicts[given_up[0]] or ""))
    vitals.beat(2, 2 * TIMEOUT_S)
    assert vitals.verdict(2 * TIMEOUT_S, has_work=True) is None


def test_what_nobody_could_hear_is_no_silence(worker: tuple[str, int]) -> None:
    """The engine itself had no time."""
    vitals = Vitals(worker[1], TIMEOUT_S, now=0.0)
    vitals.excuse(100 * TIMEOUT_S)
    assert vitals.verdict(100 * TIMEOUT_S + 1, has_work=True) is None


@given(most=st.integers(0, 12), window_s=st.floats(1, 300), gaps=st.lists(st.floats(0, 200), max_size=30))
def test_restarts_come_later_each_time_and_so_often_only(most: int, window_s: float, gaps: list[float]) -> None:
    restarts, now = Restarts(most, window_s), 0.0
    granted: list[float] = []
    for gap in gaps:
        now += gap
        recent = [at for at in granted if at > now - window_s]
        delay_s = restarts.delay_s(now)
        assert delay_s == (min(LONGEST_S, FIRST_S * 2 ** len(recent)) if len(recent) < most else None)
        if delay_s is not None:
            granted.append(now)
    restarts.forgive()
    assert restarts.delay_s(now) == (FIRST_S if most else None)


def test_nobody_waits_for_a_worker_that_does_not_read() -> None:
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    outbox = Outbox(ours)
    messages = [bytes([number]) * size for number, size in enumerate([10, 1 << 20, 20, 1 << 22, 0, 5] * 20)]
    for message in messages:
        outbox.send(message)
    assert [theirs.recv_bytes() for _ in messages] == messages
    outbox.send(b"small again")
    assert theirs.recv_bytes() == b"small again"
    outbox.send(bytes(1 << 22))
    theirs.close()  # the worker has ended, in the middle of it
    outbox.close()
    with pytest.raises(OSError, match="no more"):
        outbox.send(b"")
