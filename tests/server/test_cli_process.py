"""The command as a process: closed pipes, full disks, Ctrl-C, odd terminals. No traceback, and the right exit code."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

LONGSPAN = (sys.executable, "-m", "longspan")
CLOSED_PIPE = 141
TRACE = "arrived_at_s,num_prefill_tokens,num_decode_tokens\n" + "".join(f"{i},{10 + i},3\n" for i in range(200))


def run(*arguments: str, stdout: int = subprocess.PIPE, **settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*LONGSPAN, *arguments], stdin=subprocess.DEVNULL, stdout=stdout, stderr=subprocess.PIPE, text=True,
        timeout=120, env={**os.environ, **settings}, check=False,
    )  # fmt: skip


@contextmanager
def closed_pipe() -> Iterator[int]:
    """Its reader has gone already, as `head` has after its lines."""
    read, write = os.pipe()
    os.close(read)
    try:
        yield write
    finally:
        os.close(write)


@pytest.mark.parametrize("command", ["models", "simulate", "--help"])
def test_a_pipe_may_close(command: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(TRACE)
    options = ("--trace", str(tmp_path / "t.csv")) if command == "simulate" else ()
    with closed_pipe() as pipe:
        done = run(command, *options, stdout=pipe)
    errors = [line for line in done.stderr.splitlines() if not line.startswith("simulated in")]
    assert not errors and done.returncode in (CLOSED_PIPE, 1)  # 1 is what rich ends with where it prints


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("command", ["models"])
def test_a_full_disk_under_the_output_is_a_line(command: str) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        done = run(command, stdout=full)
    finally:
        os.close(full)
    assert done.returncode == 1 and done.stderr == "longspan: [Errno 28] No space left on device\n"


def test_nothing_to_print_to() -> None:
    script = 'exec "$0" -m longspan models >&- 2>&-'
    assert subprocess.run(["sh", "-c", script, sys.executable], timeout=60, check=False).returncode == 0


def test_a_terminal_without_utf_8() -> None:
    done = run("explain", "no/é\u202e.jsonl", "x", PYTHONIOENCODING="ascii", LC_ALL="C")
    assert done.returncode in (1, 2) and done.stderr.isascii() and done.stderr.count("\n") == 1


def interrupted(started: subprocess.Popen[str], sign: str) -> tuple[int, str]:
    """Ctrl-C, as a terminal sends it: to all processes of the command, once a line on standard error says so."""
    assert started.stderr is not None
    said = []
    for line in started.stderr:
        said.append(line)
        if re.search(sign, line):
            break
    os.killpg(started.pid, signal.SIGINT)
    rest, _ = started.stderr.read(), started.wait(60)
    return started.returncode, "".join(said) + rest


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*LONGSPAN, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "sign"),
    [
        ("bench latency", r"starting \d+ worker"),
        ("profile --out {folder}/sib.json", r"starting \d+ worker"),
        ("serve --port 0", r"starting \d+ worker"),
    ],
)
def test_ctrl_c_while_loading_is_quiet(arguments: str, sign: str, tmp_path: Path) -> None:
    with start(*arguments.format(folder=tmp_path).split()) as started:
        code, errors = interrupted(started, sign)
    assert code == 130 and "Traceback" not in errors, errors


def test_ctrl_c_while_planning_is_quiet(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(TRACE)
    with start("plan", "--trace", str(tmp_path / "t.csv"), "--jobs", "2", "--devices", "4") as started:
        code, errors = interrupted(started, "^1 of ")
    assert code == 130 and "Traceback" not in errors, errors
