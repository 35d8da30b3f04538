"""A server under the probe, as a process of its own: what it and its workers hold, and how it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.http_server import HttpServer, serving, status_mib

PROBED = Path(__file__).parent / "probed_server.py"
DRAIN_WITHIN_S = 90.0


@dataclass(frozen=True)
class Held:
    """What the server's process holds, and its workers together. Memory is resident, MiB."""

    server_mib: float
    workers_mib: float
    threads: int
    files: int


class WatchedServer:
    def __init__(self, http: HttpServer, probe: Path, log: Path) -> None:
        self.http = http
        self.probe_path = probe
        self.log = log
        self.port = int(http.url.rpartition(":")[2])

    @property
    def alive(self) -> bool:
        return self.http.process.poll() is None

    def held(self) -> Held:
        pid, resident_mib = self.http.process.pid, self.http.status_mib("VmRSS")
        return Held(
            server_mib=resident_mib.pop(pid, 0.0), workers_mib=sum(resident_mib.values()),
            threads=len(list(Path(f"/proc/{pid}/task").iterdir())), files=len(list(Path(f"/proc/{pid}/fd").iterdir())),
        )  # fmt: skip

    def peak_mib(self) -> float:
        """The most that the server's process ever held."""
        return status_mib(self.http.process.pid, "VmHWM")

    def probe(self) -> dict[str, Any]:
        """As probed_server.py writes it. What happened in the last second may be missing."""
        content: dict[str, Any] = json.loads(self.probe_path.read_text())
        return content

    def busy(self) -> dict[str, float]:
        """What is not zero of all that must be when no request runs."""
        names = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")
        gauges = self.http.gauges()
        return {name: gauges[name] for name in names if gauges[name] != 0}

    def busy_after(self, seconds: float) -> dict[str, float]:
        """Waits for it to be idle, at most so long; what is left then."""
        deadline = time.monotonic() + seconds
        while (busy := self.busy()) and time.monotonic() < deadline:
            time.sleep(0.2)
        return busy

    def tracebacks(self) -> list[str]:
        """The last lines of those in its log: what was raised."""
        text = self.log.read_text(errors="replace")
        return re.findall(r"^Traceback \(most recent call last\):\n(?:[ \t].*\n|\n)*(.*)", text, re.MULTILINE)

    def ask(self, path: str, body: dict[str, Any], within_s: float = 60.0) -> dict[str, Any]:
        """The answer to a good request. Raises OSError."""
        request = urllib.request.Request(
            f"{self.http.url}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=within_s) as answer:
            content: dict[str, Any] = json.loads(answer.read())
        return content

    def stop(self) -> int | None:
        """SIGTERM, and the exit code; None if it had to be killed."""
        self.http.process.send_signal(signal.SIGTERM)
        try:
            return self.http.process.wait(DRAIN_WITHIN_S)
        except subprocess.TimeoutExpired:
            os.killpg(self.http.process.pid, signal.SIGKILL)  # its session's, which is its own
            self.http.process.wait()
            return None


@contextmanager
def watched(options: Sequence[str], folder: Path, source: Path | None = None) -> Iterator[WatchedServer]:
    """`longspan serve OPTIONS` under the probe. source: another version's `src` folder, to measure that one.

    Raises:
        RuntimeError: it does not start.
    """
    probe, log = folder / "probe.json", folder / "server.log"
    environment = {} if source is None else {"PYTHONPATH": str(source)}
    with serving([sys.executable, str(PROBED), str(probe), "serve", *options], log, environment) as http:
        yield WatchedServer(http, probe, log)


def replays(log: Path) -> bool:
    """`longspan replay` finds every decision of the event log again."""
    return (
        subprocess.run([sys.executable, "-m", "longspan", "replay", str(log)], stdout=subprocess.DEVNULL).returncode
        == 0
    )
