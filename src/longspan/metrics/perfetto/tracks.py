"""Tracks of a trace, in Chrome's JSON: slices that neither overlap nor come late, and counters."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TextIO

INSTANCES, REQUESTS, COUNTERS = 1, 2, 3
_NAMES = {INSTANCES: "instances", REQUESTS: "requests", COUNTERS: "queue and KV"}


class TraceWriter:
    """Writes events one by one. Times in seconds; they count from `begin` in the trace, in microseconds."""

    def __init__(self, out: TextIO, begin: float) -> None:
        self._out = out
        self._begin = begin
        self._separator = '{"displayTimeUnit": "ms", "traceEvents": [\n'
        for number, (process, name) in enumerate(_NAMES.items()):
            self._meta("process_name", process, 0, {"name": name})
            self._meta("process_sort_index", process, 0, {"sort_index": number})

    def track(self, process: int, thread: int, name: str) -> None:
        """Name a track, and put it behind those with lower numbers."""
        self._meta("thread_name", process, thread, {"name": name})
        self._meta("thread_sort_index", process, thread, {"sort_index": thread})

    def slice(
        self, process: int, thread: int, name: str, start: float, end: float, told: Mapping[str, object]
    ) -> None:
        ts = self._us(start)
        self._write({"ph": "X", "pid": process, "tid": thread, "name": name, "ts": ts,
                     "dur": round(self._us(end) - ts, 3), "args": told})  # fmt: skip

    def instant(self, process: int, thread: int, name: str, at: float, told: Mapping[str, object]) -> None:
        self._write({"ph": "i", "s": "t", "pid": process, "tid": thread, "name": name, "ts": self._us(at),
                     "args": told})  # fmt: skip

    def counter(self, name: str, at: float, values: Mapping[str, float]) -> None:
        self._write({"ph": "C", "pid": COUNTERS, "tid": 0, "name": name, "ts": self._us(at), "args": values})

    def close(self) -> None:
        self._out.write("\n]}\n")

    def _meta(self, name: str, process: int, thread: int, told: Mapping[str, object]) -> None:
        self._write({"ph": "M", "pid": process, "tid": thread, "name": name, "args": told})

    def _us(self, seconds: float) -> float:
        return round((seconds - self._begin) * 1e6, 3)

    def _write(self, event: Mapping[str, object]) -> None:
        self._out.write(self._separator + json.dumps(event))
        self._separator = ",\n"


class Lanes:
    """Numbers for things side by side: each gets the lowest that is free when it begins, of those from `first` on."""

    def __init__(self, first: int = 0) -> None:
        self._first = first
        self._free_at: list[float] = []

    def take(self, start: float, end: float) -> tuple[int, bool]:
        """Return the number, and whether it is a new one."""
        for number, free_at in enumerate(self._free_at):
            if free_at <= start:
                self._free_at[number] = end
                return self._first + number, False
        self._free_at.append(end)
        return self._first + len(self._free_at) - 1, True
