"""A real server: its own process, its own workers, the real model."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

START_S, SETTLE_S = 280, 120


@dataclass
class Server:
    """`longspan serve` as a user starts it. `url` is what it printed."""

    process: subprocess.Popen[str]
    url: str = ""
    lines: list[str] = field(default_factory=list)

    def worker(self, instance: int) -> int:
        """The process id of an instance's only worker."""
        (pid,) = self.get("/fleet").json()["instances"][instance]["pids"]
        return int(pid)

    def get(self, path: str) -> httpx2.Response:
        return httpx2.get(f"{self.url}{path}", timeout=SETTLE_S)

    def gauge(self, name: str) -> float:
        text = self.get("/metrics").text
        families = {family.name: family for family in text_string_to_metric_families(text)}
        return sum(sample.value for sample in families[name].samples)

    def wait_until_free(self) -> None:
        """Until no request runs and every KV slot is free."""
        wait_for(
            lambda: (
                self.gauge("vllm:num_requests_running") == 0
                and self.gauge("vllm:num_requests_waiting") == 0
                and self.gauge("vllm:kv_cache_usage_perc") == 0
            )
        )

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(SETTLE_S)


def wait_for(condition: Callable[[], bool], at_most_s: float = SETTLE_S) -> None:
    """Poll a condition that is bound to come true; the deadline is only there to end a broken test."""
    deadline = time.monotonic() + at_most_s
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.05)


@contextmanager
def serve(*arguments: str, on: Sequence[str] = (), instances: int = 2) -> Iterator[Server]:
    """on: a command that runs what follows it, on a machine that this one does not reach."""
    process = subprocess.Popen(
        [*on, sys.executable, "-m", "longspan", "serve", "--port", "0", "--instances", str(instances),
         *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, "COLUMNS": "200"},
    )  # fmt: skip
    server = Server(process)
    ready = threading.Event()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            server.lines.append(line)
            if found := re.search(r"at (http://\S+)/v1", line):
                server.url = found.group(1)
                ready.set()
        ready.set()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        assert ready.wait(START_S) and server.url, "".join(server.lines)
        if not on:
            wait_for(lambda: _answers(server.url))
        yield server
    finally:
        process.kill()
        process.wait()
        reader.join()


def _answers(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/ready").status_code == 200
    except httpx2.TransportError:
        return False


@pytest.fixture(scope="session")
def server(model) -> Iterator[Server]:
    """One for all tests that leave it as it was: a start costs more than what they ask.

    It refuses nobody as late: on a machine that others use, too, nothing is in time.
    """
    with serve("--overload", "off") as running:
        yield running
