"""The server as a process: start, signals, exit codes."""

from __future__ import annotations

import json
import re
import resource
import shlex
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

from longspan.entrypoints.serve import check_access
from longspan.entrypoints.server_config import ServerConfig
from longspan.entrypoints.welcome import print_welcome
from tests.server.fake_engine import FakeEngine

ROOT = Path(__file__).parents[2]
PATIENCE_S = 120


@contextmanager
def process(mode: str, port: int = 0, **settings: object) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tests.server.serve_fake", str(port), mode, json.dumps(settings)]
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
        # Or a full collection holds the loop for a tenth of a second, whenever requests leave enough behind.
        assert int(wait_for(server.stdout, r"not to be collected: (\d+)").group(1)) > 10_000
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
        assert server.wait(PATIENCE_S) == 0
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
            assert server.wait(PATIENCE_S) == 128 + signal.SIGTERM
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
        assert server.wait(PATIENCE_S) == 1
        assert server.stderr is not None and "the engine is dead" in server.stderr.read()


def test_a_signal_while_the_model_loads() -> None:
    with process("never") as server:
        wait_for(server.stdout, "starting")
        server.send_signal(signal.SIGTERM)
        assert server.wait(PATIENCE_S) == 128 + signal.SIGTERM


def test_an_engine_that_does_not_start_is_one_line() -> None:
    with process("bug") as server:
        _, errors = server.communicate(timeout=PATIENCE_S)
        assert server.returncode == 1
    assert errors.strip().splitlines() == [
        "the engine did not start: ZeroDivisionError: first line (--log-level debug tells more)"
    ]


def test_a_port_in_use_is_told_before_the_model_loads() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with process("never", port) as server:
            out, errors = server.communicate(timeout=PATIENCE_S)
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
        assert server.wait(PATIENCE_S) == 0


def test_the_welcome_of_a_server_with_keys_takes_the_key_from_the_environment(
    capsys: pytest.CaptureFixture[str],
) -> None:
    engine = FakeEngine(model_name="it's \"[bold]mine[/bold]\"")
    print_welcome(engine, "http://127.0.0.1:1", asks_for_key=True)
    shown = capsys.readouterr().out
    assert "export OPENAI_API_KEY" in shown and f"serves {engine.model_name} at" in shown
    (curl,) = (line for line in shown.splitlines() if line.startswith("curl"))
    sent = shlex.split(curl)
    assert "Authorization: Bearer $OPENAI_API_KEY" in sent and '"Authorization:' in curl  # which the shell fills in
    assert json.loads(sent[-1])["model"] == engine.model_name
    python = shown[shown.index("from openai") : shown.index("Ctrl-C")]
    assert "api_key" not in python  # so that OpenAI's client looks into the environment
    compile(python, "pasted", "exec")


def test_running_out_of_files_costs_connections_not_the_server() -> None:
    with process("hang") as server, httpx2.Client(timeout=30, trust_env=False) as http:
        url = wait_for_url(server)
        port = int(url.rpartition(":")[2])
        assert http.get(f"{url}/health").status_code == 200
        used = len(list(Path(f"/proc/{server.pid}/fd").iterdir()))
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (used + 10, used + 10))
        opened = [socket.create_connection(("127.0.0.1", port), timeout=30) for _ in range(40)]
        closed = 0
        for sock in opened[20:]:  # the first ten or so had files left
            try:
                closed += sock.recv(1) == b""
            except ConnectionError:
                closed += 1
        assert closed == 20
        for sock in opened:
            sock.close()
        assert http.get(f"{url}/health").status_code == 200
        with httpx2.Client(timeout=30, trust_env=False) as new:
            assert new.get(f"{url}/health").status_code == 200
        server.send_signal(signal.SIGTERM)
        _, errors = server.communicate(timeout=PATIENCE_S)
    assert server.returncode == 0
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("settings", "warns"),
    [
        ({"host": "0.0.0.0"}, True),
        ({"host": "::"}, True),
        ({"host": "192.168.0.7"}, True),
        ({"host": "server.example.com"}, True),
        ({"host": "0.0.0.0", "api_key": ("key",)}, False),
        ({"host": "localhost"}, False),
        ({}, False),
    ],
)
def test_serving_beyond_this_machine_without_a_key_warns(
    settings: dict[str, object], warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    check_access(ServerConfig(**settings))  # type: ignore[arg-type]
    assert ("may use this server: give --api-key" in caplog.text) == warns


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"ssl_certfile": "/nowhere/x.pem"}, "ssl_certfile /nowhere/x.pem cannot be read"),
        ({"api_key_file": "/nowhere/keys"}, "api_key_file /nowhere/keys cannot be read"),
        ({"api_key": ["not a key"]}, "api_key: number 1 is not a key"),
    ],
)
def test_files_are_looked_at_before_the_model_is_loaded(settings: dict[str, object], says: str) -> None:
    with process("never", **settings) as server:
        out, errors = server.communicate(timeout=PATIENCE_S)
    assert server.returncode == 1
    assert errors.startswith(says) and "starting" not in out


def test_logs_as_json() -> None:
    with process("hang", log_format="json", access_log=True) as server:
        url = wait_for_url(server)
        httpx2.get(f"{url}/health", timeout=30, trust_env=False)
        server.send_signal(signal.SIGTERM)
        _, errors = server.communicate(timeout=PATIENCE_S)
    lines = [json.loads(line) for line in errors.splitlines()]
    (access,) = [line for line in lines if line["logger"] == "longspan.access"]
    assert (access["method"], access["path"], access["status"]) == ("GET", "/health", 200)
    assert any(line["message"].startswith("stopping") for line in lines)
