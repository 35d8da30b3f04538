"""The server as a process: start, signals, exit codes."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import httpx2
import pytest

ROOT = Path(__file__).parents[2]


@contextmanager
def process(mode: str, port: int = 0) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tests.server.serve_fake", str(port), mode]
    started = subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        yield started
    finally:
        started.kill()
        started.communicate()


def wait_for(lines: IO[str] | None, pattern: str) -> re.Match[str]:
    assert lines is not None
    seen = []
    for line in lines:
        seen.append(line)
        if found := re.search(pattern, line):
            return found
    raise AssertionError("".join(seen))


def wait_for_url(server: subprocess.Popen[str]) -> str:
    return wait_for(server.stdout, r"serves .* at (http://\S+)/v1").group(1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_and_exits_with_0(number: signal.Signals) -> None:
    with process("finish") as server, httpx2.Client(timeout=30, trust_env=False) as http:
        url = wait_for_url(server)
        body = {"prompt": "x", "stream": True}
        with http.stream("POST", f"{url}/v1/completions", json=body) as answer:
            lines = (line for line in answer.iter_lines() if line)
            first = next(lines)
            server.send_signal(number)
            wait_for(server.stdout, "draining")
            assert http.get(f"{url}/ready").status_code == 503
            refused = http.post(f"{url}/v1/completions", json={"prompt": "x"})
            assert refused.json()["error"]["code"] == "server_draining"
            http.get(f"{url}/metrics")  # the sign for the engine to go on
            rest = list(lines)
        assert '"text":"H"' in first
        assert rest[-1] == "data: [DONE]" and '"finish_reason":"stop"' in rest[-2]
        assert server.wait(30) == 0
        assert server.stdout is not None and "closed" in server.stdout.read()


def test_a_second_signal_stops_at_once() -> None:
    with process("hang") as server, httpx2.Client(timeout=30, trust_env=False) as http:
        url = wait_for_url(server)
        body = {"prompt": "x", "stream": True}
        with http.stream("POST", f"{url}/v1/completions", json=body) as answer:
            next(answer.iter_lines())
            server.send_signal(signal.SIGTERM)
            wait_for(server.stdout, "draining")
            server.send_signal(signal.SIGTERM)
            assert server.wait(30) == 128 + signal.SIGTERM
        assert server.stdout is not None and "closed" in server.stdout.read()


@pytest.mark.parametrize("mode", ["die", "die_slowly"])
def test_a_dead_engine_ends_the_process_with_1(mode: str) -> None:
    """By itself, and when it is told to stop while it still says why it is dead."""
    with process(mode) as server, httpx2.Client(timeout=30, trust_env=False) as http:
        url = wait_for_url(server)
        with http.stream("POST", f"{url}/v1/completions", json={"prompt": "x", "stream": True}) as answer:
            lines = (line for line in answer.iter_lines() if line)
            next(lines)
            next(lines)
            http.get(f"{url}/metrics")  # the sign for the engine to die
            rest = list(lines)
        assert "worker 1 is gone" in rest[-2] and rest[-1] == "data: [DONE]"
        if mode == "die_slowly":
            health = http.get(f"{url}/health")
            assert health.status_code == 503 and "worker 1 is gone" in health.text
            server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 1
        assert server.stderr is not None and "the engine is dead" in server.stderr.read()


def test_a_signal_while_the_model_loads() -> None:
    with process("never") as server:
        wait_for(server.stdout, "starting")
        server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 128 + signal.SIGTERM


def test_an_engine_that_does_not_start_is_one_line() -> None:
    with process("bug") as server:
        _, errors = server.communicate(timeout=30)
        assert server.returncode == 1
    assert errors.strip().splitlines() == [
        "the engine did not start: ZeroDivisionError: first line (--log-level debug tells more)"
    ]


def test_a_port_in_use_is_told_before_the_model_loads() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with process("never", port) as server:
            out, errors = server.communicate(timeout=30)
    assert server.returncode == 1
    assert f"port {port} on 127.0.0.1 is in use already" in errors
    assert "starting" not in out


def test_the_welcome_can_be_pasted() -> None:
    with process("hang") as server:
        url = wait_for_url(server)
        assert server.stdout is not None
        text = [
            wait_for(server.stdout, pattern).string for pattern in ("chat --url", "^curl", "client = ")
        ]
        assert f"--url {url}" in text[0]
        assert f"{url}/v1/chat/completions" in text[1] and '"messages"' in text[1]
        assert text[2].startswith(f'client = OpenAI(base_url="{url}/v1"')
        server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 0
