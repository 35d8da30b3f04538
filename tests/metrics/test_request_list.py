"""Requests of a log: listed, and found by whatever name somebody has for them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tracemalloc
from itertools import pairwise
from pathlib import Path

import pytest

from longspan.config import SchedulerConfig
from longspan.core.actions import KVRange, RunBatch, Segment
from longspan.core.events import BatchCompleted, RequestArrived, TokenOutput
from longspan.entrypoints import cli
from longspan.metrics.event_log import EventLogWriter, read_event_log
from longspan.metrics.explain import explain
from longspan.metrics.request_list import find_requests, list_requests, suggest
from tests.core.driver import Driver

IDS = [
    "cmpl-0123456789abcdef0123456789abcdef-00000001-0", "chatcmpl-my-request-00000002-0",
    "chatcmpl-my-request-00000002-1", "cmpl-my-request-2-00000003-0", "llm-1",
]  # fmt: skip


def a_log(folder: Path, **options: int) -> Path:
    """Requests of all ends; `llm-1` waits for the instance while the others run."""
    d = Driver(SchedulerConfig(policy="elastic_fcfs", num_instances=1, kv_tokens=1000, max_waiting=5, lookahead=False))
    for number, request_id in enumerate(IDS):
        d.arrive(100 + number, 10, request_id)
    d.arrive(2000, 5, "too-long")
    d.complete()
    d.abort(IDS[1])
    for _ in range(3):
        d.complete(stop={IDS[0]})
    d.finish()
    with EventLogWriter(folder / "log", d.config, **options) as log:
        for (now, event, actions), why in zip(d.log, d.why, strict=True):
            log.write(now, event, actions, why)
    assert log.errors == 0
    return folder / "log"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return a_log(tmp_path)


@pytest.mark.parametrize("max_bytes", [None, 1000])
def test_a_list_has_how_each_ended_and_waited(tmp_path: Path, max_bytes: int | None) -> None:
    log = read_event_log(a_log(tmp_path, **({} if max_bytes is None else {"max_bytes": max_bytes})))
    rows = {row.request_id: row for row in list_requests(log)}
    assert {name: row.end for name, row in rows.items()} == {
        IDS[0]: "stop", IDS[1]: "aborted", IDS[2]: "length", IDS[3]: "length", IDS[4]: "length", "too-long": "refused",
    }  # fmt: skip
    assert [rows[name].num_prompt_tokens for name in (*IDS, "too-long")] == [100, 101, 102, 103, 104, 2000]
    assert rows[IDS[2]].num_output_tokens == 10 and rows["too-long"].num_output_tokens == 0
    for name in IDS[2:]:
        waited = [c.end - c.start for c in explain(log.path, name).chapters if c.kind in ("waits", "pauses")]
        assert rows[name].longest_wait_s == pytest.approx(max(waited, default=0.0), abs=1e-9)
    assert rows[IDS[4]].longest_wait_s > 0


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("cmpl-0123456789abcdef0123456789abcdef", [0]),  # an answer's id
        ("0123456789abcdef0123456789abcdef", [0]),  # an X-Request-Id
        ("chatcmpl-my-request", [1, 2]),  # an answer of two choices
        ("my-request", [1, 2]),
        ("chatcmpl-my-request-00000002", [1, 2]),
        ("chatcmpl-my-request-00000002-1", [2]),  # as in the log
        ("my-request-2", [3]),
        ("cmpl-0123", [0]),  # how one begins
        ("0123", [0]),
        ("cmpl-", [0, 3]),
        ("llm-1", [4]),
        ("llm", [4]),
        ("request", []),
        ("lm-1", []),
    ],
)
def test_requests_are_found_by_any_of_their_names(path: Path, given: str, found: list[int]) -> None:
    assert find_requests(read_event_log(path), given) == [IDS[number] for number in found]


def test_names_that_are_like_what_was_given_are_suggested(path: Path) -> None:
    log = read_event_log(path)
    assert suggest(log, "lm-1") == ["llm-1"]
    assert suggest(log, "0123456789abcdef0123456789abcdee")[0] == IDS[0]
    assert suggest(log, "nothing of the kind") == []


def test_the_command(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["explain", str(path)]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert listed[0] == "6 requests" and len(listed) == 8
    waits = [float(re.findall(r"([0-9.]+) s  ", line)[-1]) for line in listed[2:]]
    assert waits == sorted(waits, reverse=True)
    assert cli.run(["explain", str(path), "--all"]) == 0
    assert [line.split()[-1] for line in capsys.readouterr().out.splitlines()[1:]][-1] == IDS[4]
    assert cli.run(["explain", str(path), "my-request"]) == 0
    told = capsys.readouterr().out
    assert f"{IDS[1]}: 101 prompt tokens" in told and f"\n\n{IDS[2]}: 102 prompt tokens" in told
    assert "ends: aborted by the client" in told
    assert cli.run(["explain", str(path), "lm-1"]) == 1
    error = capsys.readouterr().err
    assert "no request 'lm-1' arrives in it; did you mean llm-1?" in error and f"longspan explain {path}" in error


def test_a_request_where_a_log_is_wanted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["explain", str(tmp_path / "chatcmpl-1")]) == 1
    assert "chatcmpl-1: No such file; if that is a request, give --url" in capsys.readouterr().err
    assert cli.run(["explain", str(tmp_path)]) == 1
    assert "--url" not in capsys.readouterr().err


def test_many_that_begin_alike_are_listed_or_all_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    d = Driver(SchedulerConfig(policy="elastic_fcfs", num_instances=1, kv_tokens=10_000))
    for number in range(30):
        d.arrive(10, 3, f"request-{number}")
    d.finish()
    path = tmp_path / "log"
    with EventLogWriter(path, d.config) as log:
        for now, event, actions in d.log:
            log.write(now, event, actions)
    assert cli.run(["explain", str(path)]) == 0
    assert "30 requests; the 20 that waited longest (--all: every one)" in capsys.readouterr().out
    assert cli.run(["explain", str(path), "request"]) == 0
    told = capsys.readouterr().out
    assert told.startswith("30 requests begin with 'request'; name one") and len(told.splitlines()) == 31
    assert cli.run(["explain", str(path), "request", "--all"]) == 0
    assert capsys.readouterr().out.count("prompt tokens, at most 3 to generate") == 30


def test_a_log_whose_first_pieces_are_gone_is_explained_but_not_replayed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = a_log(tmp_path, max_bytes=700, keep=2)
    assert not path.exists()
    assert cli.run(["explain", str(path)]) == 0
    listed = capsys.readouterr()
    assert "are missing" in listed.err and "(2 pieces; its pieces 1 to" in listed.out
    assert re.search(r" 104 .* llm-1\n", listed.out), "it was alive when the first piece that is left began"
    assert cli.run(["explain", str(path), "llm-1"]) == 0
    told = capsys.readouterr().out
    assert re.search(r"\+0\.000 s  [0-9.]+ s are missing in this log", told) and "ends: length" in told
    assert cli.run(["replay", str(path)]) == 1
    assert "a replay needs every event from the first; `longspan explain` reads what is here" in capsys.readouterr().err


def test_a_gap_between_pieces_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = a_log(tmp_path, max_bytes=762)
    assert len(list(tmp_path.iterdir())) >= 4
    (tmp_path / "log.2").unlink()
    chapters = explain(path, "llm-1").chapters
    assert [chapter.kind for chapter in chapters].count("missing") == 1 and chapters[-1].detail == "length"
    assert all(before.end <= after.start for before, after in pairwise(chapters))
    assert cli.run(["explain", str(path)]) == 0
    assert "its piece 2 is missing" in capsys.readouterr().err


def test_the_replay_command(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["replay", str(path)]) == 0
    assert capsys.readouterr().out == f"{path}: every decision is the same\n"
    with path.open("ab") as file:
        file.write(b"[1.0,[")
    assert cli.run(["replay", str(path)]) == 0
    assert re.search(r"log, line \d+: left out, as it was not written to its end", capsys.readouterr().out)
    path.write_bytes(path.read_bytes().replace(b'"finished"', b'"aborted"'))
    assert cli.run(["replay", str(path)]) == 1
    told = capsys.readouterr().out
    assert "decisions differ" in told and re.search(r"log, line \d+: the log has\n  FreeKV", told)


@pytest.mark.parametrize("command", ["explain", "replay"])
def test_a_reader_that_has_seen_enough_is_no_error(path: Path, command: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "longspan", command, str(path)], stdout=writer, stderr=subprocess.PIPE, timeout=60
    )
    os.close(writer)
    assert done.stderr == b""


def test_a_long_log_is_explained_in_little_memory(tmp_path: Path) -> None:
    """A request that waits and one that decodes, for 3,000 iterations of 20 others."""
    names = [f"r{number}" for number in range(20)]
    with EventLogWriter(tmp_path / "log", SchedulerConfig(policy="elastic_fcfs"), waits=True) as log:
        for request_id in [*names, "waits"]:
            log.write(0.0, RequestArrived(request_id, 10, 10**6), [])
        for step in range(3000):
            start = 10 + step
            segments = tuple(
                Segment(name, start, 1, (0,), (KVRange(0, start, start + 1),), ((0, start),)) for name in names
            )
            outputs = tuple(TokenOutput(name) for name in names) if step else ()
            log.write(step / 1000, BatchCompleted(step - 1, outputs), [RunBatch(step, (0,), segments)])
    tracemalloc.start()
    waits = explain(tmp_path / "log", "waits").chapters[0]
    assert waits.kind == "waits" and waits.delayers[0].seconds == pytest.approx(2.998, abs=0.01)
    assert explain(tmp_path / "log", "r3").chapters[0].count == 2999
    assert len(list(list_requests(read_event_log(tmp_path / "log")))) == 21
    assert tracemalloc.get_traced_memory()[1] < 3 << 20
    tracemalloc.stop()
