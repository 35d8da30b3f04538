"""An OpenAI server as a process of its own, on the loopback interface: started, watched, and ended."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

HOST = "127.0.0.1"
START_S, STOP_S = 600.0, 60.0
_TICKS = os.sysconf("SC_CLK_TCK")
_GAUGE = re.compile(r"^([a-z:_]+)(?:\{[^}]*\})? ([-+.0-9e]+)$", re.MULTILINE)


class HttpServer:
    """url: where it answers. The process leads a session of its own, so that all its children count as its."""

    def __init__(self, process: subprocess.Popen[bytes], url: str) -> None:
        self.process = process
        self.url = url

    def cpu_seconds(self) -> float:
        """Processor time that it has taken so far, with all its children that are alive."""
        return sum(int(fields[11]) + int(fields[12]) for _, fields in self._processes()) / _TICKS

    def process_ids(self) -> list[int]:
        """Of all processes of its session; its own first."""
        return sorted((pid for pid, _ in self._processes()), key=lambda pid: (pid != self.process.pid, pid))

    def status_mib(self, name: str) -> dict[int, float]:
        """By process, as `process_ids` orders them: see the function of that name."""
        return {pid: status_mib(pid, name) for pid in self.process_ids()}

    def gauges(self) -> dict[str, float]:
        """Its metrics, sums over labels. Raises OSError."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=60) as answer:
            text = answer.read().decode()
        sums: dict[str, float] = {}
        for name, value in _GAUGE.findall(text):
            sums[name] = sums.get(name, 0.0) + float(value)
        return sums

    def _processes(self) -> Iterator[tuple[int, list[str]]]:
        """Process id and fields of /proc/PID/stat behind the name, of its session; by id."""
        for pid in sorted(int(path.name) for path in Path("/proc").glob("[0-9]*")):
            try:
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            except OSError:  # it has just ended
                continue
            if int(fields[3]) == self.process.pid:
                yield pid, fields

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/v1/models", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


@contextmanager
def serving(command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None) -> Iterator[HttpServer]:
    """Run `command --port PORT` until it answers, and end it afterwards. Raises RuntimeError: it does not start."""
    port = _free_port()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--port", str(port)], stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            env={**os.environ, **(environment or {})},
        )  # fmt: skip
    server = HttpServer(process, f"http://{HOST}:{port}")
    try:
        deadline = time.monotonic() + START_S
        while not server.answers():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{command} does not start:\n{log.read_text()[-4000:]}")
            time.sleep(0.5)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # its session's, which is its own
            process.wait()


def end_cleanly_on_sigterm() -> None:
    """A benchmark that is told to stop ends its server, too."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))


def status_mib(pid: int, name: str) -> float:
    """A line of /proc/PID/status, shared memory included: VmRSS, what is resident now; VmHWM, the most that ever was.

    0 of a process that has just ended.
    """
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    found = re.search(rf"^{name}:\s+(\d+) kB", status, re.MULTILINE)
    return int(found[1]) / 1024 if found else 0.0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
