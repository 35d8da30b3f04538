"""`longspan plan`, as a user runs it."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from longspan.core.news import News
from longspan.core.policies.base import Policy
from longspan.core.state import SchedulerState
from longspan.entrypoints.cli import run
from longspan.entrypoints.plan.doubts import doubts
from longspan.simulator.pool_sizes import TIMES, PoolSizes
from longspan.workload.traces import TraceRequest, read_trace
from tests.processes import of_session, read, wait_until

from .examples import talks_in_turn

OPTIONS = {
    "--input-len": "200:9000", "--output-len": "5:30", "--num-requests": "30", "--devices": "2", "--tp": "1,2",
    "--ttft-slo-factor": "5", "--jobs": "1",
}  # fmt: skip


def plan(**changes: object) -> int:
    options = OPTIONS | {f"--{name.replace('_', '-')}": str(value) for name, value in changes.items()}
    return run(["plan", *(word for pair in options.items() for word in pair)])


def answers(path: Path) -> list[dict[str, float]]:
    found: list[dict[str, float]] = json.loads(path.read_text())["answers"]
    return found


def test_the_highest_rates_best_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "plan.json"
    assert plan(policies="elastic_fcfs,replicated", json=file, jobs=2) == 0
    assert "instances x pp x tp" in capsys.readouterr().out
    found = answers(file)
    assert {(a["policy"], a["tp"]) for a in found} == {(p, tp) for p in ("elastic_fcfs", "replicated") for tp in (1, 2)}
    rates = [a["rate"] for a in found]
    assert rates == sorted(rates, reverse=True) and rates[0] > 0
    assert all(a["attainment"] >= 0.9 and a["load"] > 0 for a in found if a["rate"])
    first = file.read_bytes()
    assert plan(policies="elastic_fcfs,replicated", json=file) == 0
    assert file.read_bytes() == first


def test_those_refused_as_late_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With hardly any promise, and no wish for attainment, the highest rate is one at which most are late."""
    file = tmp_path / "plan.json"
    policy = "longspan:promise_factor=1:promise_floor_s=0.001"
    late = {}
    for overload in ("enforce", "off"):
        changes = {"num_requests": 60, "attainment": 0.3, "tp": 1, "overload": overload, "json": file}
        assert plan(policies=policy, **changes) == 0
        assert "late" in capsys.readouterr().out
        (answer,) = answers(file)
        late[overload] = answer["num_late"]
    assert 0 == late["off"] < late["enforce"]


def test_what_speaks_against_an_answer_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The 30 requests of one burst are over before the queue is long, at a rate that nobody can bear."""
    file = tmp_path / "plan.json"
    assert plan(policies="replicated", tp=1, attainment=0.5, slo="ttft=100,tpot=10", json=file) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("longspan: ")]
    assert len(told) == 2 and answers(file)[0]["load"] > 1
    assert "requests judge it" in told[0] and "50% asks for 20 of each" in told[0] and "--num-requests" in told[0]
    assert f"the load is {answers(file)[0]['load']:.2f}" in told[1]
    assert [f"longspan: {doubt}" for doubt in json.loads(file.read_text())["doubts"]] == told


def test_nothing_speaks_against_enough_requests_at_a_low_load() -> None:
    short, long = TraceRequest(0.0, 100, 5), TraceRequest(0.0, 9000, 5)
    assert list(doubts([short] * 100 + [long] * 100, 0.9, 4096, 0.9)) == []
    assert list(doubts([short] * 100, 0.9, 4096, None)) == []  # a class that is not there needs none
    (told,) = doubts([short] * 100 + [long] * 99, 0.9, 4096, 1.0)
    assert told.startswith("only 99 long requests")


def test_what_pools_of_other_sizes_would_find_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """For the best answer, of its own pool: as much as the file has."""
    trace, file = talks_in_turn(tmp_path / "trace.jsonl"), tmp_path / "plan.json"
    command = ["plan", "--trace", str(trace), "--devices", "2", "--tp", "1,2", "--policies", "longspan", "--jobs", "1"]
    assert run([*command, "--attainment", "0.5", "--json", str(file)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    found, pools = json.loads(file.read_text())["answers"], PoolSizes(read_trace(trace), 16)
    for answer in found:
        expected = [{"times": times, "hit_rate": pools.hit_rate(times * answer["kv_slots"])} for times in TIMES]
        assert answer["pools"] == expected
    half, same, twice, four = [f"{pool['hit_rate']:.1%}" for pool in found[0]["pools"]]
    told = f"finds {same} with these KV slots, with 0.5 times {half}, 2 times {twice}, 4 times {four}"
    assert f"of the best: a pool that keeps what was used last {told}" in printed


def test_pipelines_are_tried_too(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    assert plan(policies="sarathi", tp=1, pp="1,2", json=file) == 0
    assert {(a["pp"], a["devices"]) for a in answers(file)} == {(1, 2), (2, 2)}


def test_fewer_devices_are_enough_for_a_lower_rate(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"

    def devices(rate: float) -> float:
        code = plan(find="devices", rate=rate, tp=1, devices=4, policies="replicated", json=file)
        needed = answers(file)[0]["devices"]
        assert code == (0 if needed else 1)
        return needed

    assert devices(0.2) == 1 < devices(6)
    assert devices(1000) == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"policies": "abacus"}, "there is no policy 'abacus'"),
        ({"policies": ","}, "no policies are given"),
        ({"tp": "two"}, "tp is 'two'"),
        ({"tp": "16"}, "tp is 16 and pp 1, but there are 2 devices"),
        ({"pp": "0"}, "pp is '0'"),
        ({"model": "llama-3-70b", "hardware": "a40"}, "does not fit"),
        ({"attainment": "2"}, "attainment is 2.0"),
        ({"devices": "0"}, "devices is 0"),
        ({"num_requests": "1"}, "at least two, at different times"),
    ],
)
def test_what_cannot_be_gets_one_line_and_code_2(
    changes: dict[str, str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plan(**changes) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("\n") == 1


class Killed(Policy):
    """A policy whose process is killed when it decides, as one without memory would be."""

    name = "killed"

    def schedule(self, state: SchedulerState, news: News, now: float) -> None:
        assert multiprocessing.parent_process() is not None
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_is_killed_is_told_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(policies=f"{__name__}:Killed", num_requests=10, tp=1) == 1
    captured = capsys.readouterr()
    assert "ended from outside" in captured.err and "--jobs" in captured.err and captured.err.count("\n") == 1



def test_nothing_is_left_of_one_that_is_killed() -> None:
    """Processes that simulate would go on for minutes, that nobody needs."""
    words = [word for pair in {**OPTIONS, "--num-requests": "20000", "--jobs": "2"}.items() for word in pair]
    command = subprocess.Popen([sys.executable, "-m", "longspan", "plan", *words], start_new_session=True)
    try:
        wait_until(lambda: sum(b"spawn_main" in read(pid, "cmdline") for pid in of_session(command.pid)) == 2)
        command.kill()
        command.wait()
        wait_until(lambda: not of_session(command.pid))
    finally:
        with suppress(ProcessLookupError):
            os.killpg(command.pid, signal.SIGKILL)
