"""`longspan` with a probe on its event loop: how much processor time each callback takes of the loop's thread.

    python -m benchmarks.robustness.probed_server PROBE.json serve smollm2-135m --port 0

All that the loop runs goes through the probe: callbacks that were scheduled (a task's step is one), and what the
loop tells a connection's protocol (data_received and the like, where requests are parsed). The time is
`time.thread_time`, so that neither the other processes of a busy machine nor the process's other threads count.
PROBE.json holds the callbacks that took more than SLOW_S, with the stack that a watching thread found in the midst of
the longest ones, and says how many there were in all. It is written anew every half second, and at the end.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import uvloop

SLOW_S = 0.010  # is noted
LOOK_S = 0.030  # is looked at: which line is running
WRITE_EVERY_S = 0.5
STACK_LINES = 14
PROTOCOL_CALLS = ("connection_made", "data_received", "eof_received", "connection_lost", "pause_writing",
                  "resume_writing")  # fmt: skip


class Probe:
    """What the loop's thread did. `slow`: [end on the monotonic clock, CPU seconds, what, stack] of each slow call."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.calls = 0
        self.longest_s = 0.0
        self.slow: list[list[Any]] = []
        self.began: float | None = None  # on the watcher's clock, of the callback that runs now
        self.stack = ""
        self.loop_thread = threading.get_ident()
        self.ended = threading.Event()
        self.watcher = threading.Thread(target=self._watch, name="probe", daemon=True)
        self.watcher.start()

    def timed(self, callback: Callable[..., Any]) -> Callable[..., Any]:
        clock = time.thread_time

        def run(*args: Any) -> Any:
            self.began = time.monotonic()
            begin = clock()
            try:
                return callback(*args)
            finally:
                took = clock() - begin
                self.began = None
                self.calls += 1
                if took > self.longest_s:
                    self.longest_s = took
                if took > SLOW_S:
                    self.slow.append([time.monotonic(), took, name_of(callback), self.stack])
                self.stack = ""

        return run

    def write(self) -> None:
        content = {"pid": os.getpid(), "calls": self.calls, "longest_s": self.longest_s, "slow": list(self.slow)}
        new = self.path.with_suffix(".new")
        new.write_text(json.dumps(content))
        new.replace(self.path)

    def close(self) -> None:
        self.ended.set()
        self.watcher.join()
        self.write()

    def _watch(self) -> None:
        written_at, calls = 0.0, -1
        while not self.ended.wait(0.01):
            now = time.monotonic()
            began = self.began
            if began is not None and now - began > LOOK_S and not self.stack:
                stack = stack_of(self.loop_thread)
                if self.began == began:  # else it has ended meanwhile
                    self.stack = stack
            if now - written_at > WRITE_EVERY_S and self.calls != calls:
                written_at, calls = now, self.calls
                self.write()


class ProbedLoop(uvloop.Loop):
    """uvloop, every callback of which is timed."""

    probe: Probe

    def call_soon(self, callback: Callable[..., Any], *args: Any, context: Any = None) -> Any:
        return super().call_soon(self.probe.timed(callback), *args, context=context)

    def call_soon_threadsafe(self, callback: Callable[..., Any], *args: Any, context: Any = None) -> Any:
        return super().call_soon_threadsafe(self.probe.timed(callback), *args, context=context)

    def call_later(self, delay: float, callback: Callable[..., Any], *args: Any, context: Any = None) -> Any:
        return super().call_later(delay, self.probe.timed(callback), *args, context=context)

    def call_at(self, when: float, callback: Callable[..., Any], *args: Any, context: Any = None) -> Any:
        return super().call_at(when, self.probe.timed(callback), *args, context=context)

    async def create_server(self, protocol_factory: Callable[[], Any], *args: Any, **kwargs: Any) -> Any:
        def make() -> Any:
            protocol = protocol_factory()
            for name in PROTOCOL_CALLS:
                setattr(protocol, name, self.probe.timed(getattr(protocol, name)))
            return protocol

        return await super().create_server(make, *args, **kwargs)


def stack_of(thread: int) -> str:
    """Where the thread is, the innermost line first."""
    frame, lines = sys._current_frames().get(thread), []
    with suppress(AttributeError):  # a frame that runs on while it is looked at may have come apart
        while frame is not None and len(lines) < STACK_LINES:
            lines.append(f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {frame.f_code.co_name}")
            frame = frame.f_back
    return " < ".join(lines)


def name_of(callback: Callable[..., Any]) -> str:
    """A task's step is called after its coroutine."""
    owner = getattr(callback, "__self__", None)
    if isinstance(owner, asyncio.Task):
        return f"step of {getattr(owner.get_coro(), '__qualname__', owner.get_coro())}"
    return str(getattr(callback, "__qualname__", callback))


def main() -> None:
    probe = Probe(Path(sys.argv[1]))
    ProbedLoop.probe = probe
    uvloop.new_event_loop = ProbedLoop  # what the server makes its loop with
    del sys.argv[1]
    from longspan.entrypoints.cli import run

    try:
        code = run(sys.argv[1:])
    finally:
        probe.close()
    sys.exit(code)


if __name__ == "__main__":  # worker processes import this file
    main()
