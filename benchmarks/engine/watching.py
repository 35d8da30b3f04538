"""What it costs to be watched: CPU time of the engine's process with all of it on, and as it is by default.

    python -m benchmarks.engine.watching --json watching
    python -m benchmarks.engine.watching --on log --rounds 3      # the event log alone

Two servers, one as it is by default, one that writes an event log, sends a trace of each request to a receiver on this
machine, and has ten pages open that read all they are told. Both get the same streams, in turn; the CPU time is that
of the process that decides and speaks HTTP, all its threads included, workers and the process that sends traces not.
What the process beside it uses, which writes the log and works out what pages show, its start included, is told apart.
"""

from __future__ import annotations

import asyncio
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx2

from benchmarks.common import arguments, interleaved, paired_ratio, random_prompt, save, say, summary
from benchmarks.engine.overhead import stream

OPTIONS = (
    ("model", "smollm2-135m", "model"),
    ("on", "log,traces,viewers", "what the watched one has on"),
    ("viewers", 10, "pages that are open"),
    ("streams", 16, "requests at once"),
    ("context", 256, "tokens of a prompt"),
    ("tokens", 256, "that each is answered with"),
    ("rounds", 9, "of the same load for both"),
    ("json", "", "name of the result to save"),
)


@dataclass
class Served:
    """A server. pid: of the engine's process."""

    pid: int
    port: int

    def cpu_s(self) -> float:
        """Return the CPU time that its threads have used, to the nanosecond, other than the kernel's count of ticks."""
        return cpu_s(self.pid)

    def observer_cpu_s(self) -> float:
        """Return that of the process that observes, if there is one."""
        children = Path(f"/proc/{self.pid}/task").glob("*/children")
        found = [int(pid) for each in children for pid in each.read_text().split()]
        return sum(
            cpu_s(pid) for pid in found if b"longspan.engine.observer" in Path(f"/proc/{pid}/cmdline").read_bytes()
        )


def cpu_s(pid: int) -> float:
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


@contextmanager
def server(model: str, *more: str) -> Iterator[Served]:
    command = [sys.executable, "-m", "longspan", "serve", model, "--port", "0", "--instances", "2",
               "--threads-per-device", "1", "--kv-tokens", "16384", "--overload", "off", *more]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if found := re.search(r"127\.0\.0\.1:(\d+)", line):
                yield Served(process.pid, int(found[1]))
                return
        raise RuntimeError("the server did not start")
    finally:
        process.terminate()
        process.wait(60)


@contextmanager
def viewers(port: int, number: int) -> Iterator[list[int]]:
    """So many who read what a page is told; yields the bytes that each has read."""
    read, done = [0] * number, threading.Event()

    def look(place: int) -> None:
        with (
            httpx2.Client(trust_env=False, timeout=None) as http,
            http.stream("GET", f"http://127.0.0.1:{port}/dashboard/events") as answer,
        ):
            for piece in answer.iter_raw():
                read[place] += len(piece)
                if done.is_set():
                    return

    threads = [threading.Thread(target=look, args=(place,), daemon=True) for place in range(number)]
    for thread in threads:
        thread.start()
    try:
        yield read
    finally:
        done.set()
        for thread in threads:
            thread.join(30)


@contextmanager
def receiver() -> Iterator[str]:
    """Somebody who takes traces, and throws them away; yields the URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Nothing is printed."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as taking:
        threading.Thread(target=taking.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{taking.server_port}/v1/traces"
        taking.shutdown()


def load(served: Served, model: str, streams: int, context: int, tokens: int, seed: int) -> float:
    """CPU seconds of the engine's process for these streams."""

    async def every() -> None:
        prompts = [random_prompt(context, seed * 1000 + number) for number in range(streams)]
        await asyncio.gather(*(stream(served.port, model, prompt, tokens) for prompt in prompts))

    before = served.cpu_s()
    asyncio.run(every())
    return served.cpu_s() - before


def main() -> None:
    options = arguments(__doc__ or "", OPTIONS)
    on = options.on.split(",")
    with ExitStack() as stack:
        more: list[str] = []
        if "log" in on:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            more += ["--event-log", str(folder / "events.jsonl")]
        if "traces" in on:
            more += ["--otlp-traces-endpoint", stack.enter_context(receiver())]
        plain = stack.enter_context(server(options.model))
        watched = stack.enter_context(server(options.model, *more))
        read = stack.enter_context(viewers(watched.port, options.viewers if "viewers" in on else 0))
        sides = {
            name: partial(load, served, options.model, options.streams, options.context, options.tokens)
            for name, served in (("plain", plain), ("watched", watched))
        }
        begun = time.monotonic()
        seconds = interleaved(sides, options.rounds)
        took_s, told, beside_s = time.monotonic() - begun, sum(read), watched.observer_cpu_s()
    ratio = paired_ratio(seconds["watched"], seconds["plain"])
    tokens = options.streams * options.tokens
    each = {side: 1e6 * statistics.median(found) / tokens for side, found in seconds.items()}
    beside = 1e6 * beside_s / (tokens * (options.rounds + 1))
    say(f"{options.on}, {options.viewers} viewers: {100 * (ratio - 1):+.1f} % of CPU time, "
        f"{each['watched']:.0f} beside {each['plain']:.0f} µs a token; "
        f"{beside:.0f} in the process beside; {told} bytes in {took_s:.0f} s")  # fmt: skip
    if options.json:
        save(options.json, {
            "model": options.model, "on": on, "viewers": options.viewers, "streams": options.streams,
            "context": options.context, "tokens": options.tokens,
            "bytes_told": told, "took_s": took_s, "ratio": ratio, "us_a_token": each,
            "observer_us_a_token": beside,
            **{side: summary(found) for side, found in seconds.items()},
        })  # fmt: skip


if __name__ == "__main__":
    main()
