"""The event log: everything the scheduler was told and decided, one JSON object a line.

    {"version": 1, "config": {...}, "cost_model": {...}}    first line: SchedulerConfig, FittedCostModel or null
    {"now": 3.25, "event": {"type": "RequestArrived", ...}, "actions": [{"type": "RunBatch", ...}, ...],
     "why": [{"step": "batch", ...}, ...]}
    ...

"why" has what the policy explained, if it did; a replay does not look at it.

The scheduler is pure, so the log replays to the identical decisions: it is a bug report, a trace and a
dashboard's source at once. Numbers are written so that they read back to the very same bits.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import msgspec

from longspan.config import SchedulerConfig
from longspan.core.actions import Action
from longspan.core.cost_model import FittedCostModel
from longspan.core.decision import Decision
from longspan.core.events import Event
from longspan.core.internal_error import InternalError
from longspan.core.policies.base import Policy
from longspan.core.scheduler import Scheduler
from longspan.errors import ConfigError, ReplayError

FORMAT_VERSION = 1
FLUSH_INTERVAL_S = 1.0

T = TypeVar("T")


class _Line(msgspec.Struct):
    """Of a log, after the first. Events and actions tell their types."""

    now: float
    event: Event
    actions: tuple[Action, ...]
    why: tuple[Decision, ...] = ()


@dataclass(frozen=True, slots=True)
class LogRecord:
    """One call of `Scheduler.handle`. `line` counts from 1; the header is line 1."""

    line: int
    now: float
    event: Event
    actions: tuple[Action, ...]
    why: tuple[Decision, ...] = ()


@dataclass(frozen=True, slots=True)
class Difference:
    """The first call that a replay decides otherwise than the log says."""

    line: int
    expected: tuple[Action, ...]
    got: tuple[Action, ...]


class EventLogWriter:
    """Appends one line for each call of `handle`. A killed process loses about a second of it."""

    def __init__(self, path: Path | str, config: SchedulerConfig, cost_model: FittedCostModel | None = None) -> None:
        self._file = Path(path).open("wb", buffering=1 << 16)  # noqa: SIM115  (open for the server's life)
        self._encoder = msgspec.json.Encoder()
        self._flushed_at = time.monotonic()
        self._write_line({"version": FORMAT_VERSION, "config": config, "cost_model": cost_model})
        self.flush()

    def write(self, now: float, event: Event, actions: Iterable[Action], why: Sequence[Decision] = ()) -> None:
        content = {"now": now, "event": event, "actions": list(actions)}
        self._write_line(content | {"why": why} if why else content)
        if time.monotonic() - self._flushed_at >= FLUSH_INTERVAL_S:
            self.flush()

    def flush(self) -> None:
        self._file.flush()
        self._flushed_at = time.monotonic()

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> EventLogWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write_line(self, content: dict[str, Any]) -> None:
        self._file.write(self._encoder.encode(content) + b"\n")


class EventLog:
    """A log on disk: its configuration at once, its records one by one.

    truncated_line: after the last record, the number of a last line that a killed process left unfinished (it
        is not part of the log), else None.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.truncated_line: int | None = None
        _, header = next(self._lines(), (1, None))
        if header is None:
            raise ReplayError(f"{self.path}, line 1: there is no header")
        version = header.get("version")
        if version != FORMAT_VERSION:
            raise ReplayError(f"{self.path}, line 1: version {version!r}, but this reads {FORMAT_VERSION}")
        self.config = self._convert(1, header.get("config"), SchedulerConfig)
        model = header.get("cost_model")
        self.cost_model = None if model is None else self._convert(1, model, FittedCostModel)

    def __iter__(self) -> Iterator[LogRecord]:
        lines = self._lines()
        next(lines)
        for line, content in lines:
            read = self._convert(line, content, _Line)
            yield LogRecord(line, read.now, read.event, read.actions, read.why)

    def _lines(self) -> Iterator[tuple[int, dict[str, Any]]]:
        try:
            with self.path.open("rb") as file:
                for line, text in enumerate(file, start=1):
                    if not text.endswith(b"\n"):
                        self.truncated_line = line
                        return
                    yield line, self._parse(line, text)
        except OSError as error:
            raise ReplayError(f"{self.path}: {error.strerror}") from error

    def _parse(self, line: int, text: bytes) -> dict[str, Any]:
        try:
            return msgspec.json.decode(text, type=dict[str, Any])
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise self._broken(line, str(error)) from error

    def _convert(self, line: int, content: object, kind: type[T]) -> T:
        try:
            return msgspec.convert(content, kind)
        except (msgspec.ValidationError, ConfigError) as error:
            raise self._broken(line, str(error)) from error

    def _broken(self, line: int, cause: str) -> ReplayError:
        return ReplayError(f"{self.path}, line {line}: {cause}")


def read_event_log(path: Path | str) -> EventLog:
    return EventLog(path)


def replay(path: Path | str, policy: Policy | None = None) -> Difference | None:
    """Feed the log's events to a new scheduler; returns where it first decides otherwise, or None.

    policy: for logs of a policy that is not known by name. An unfinished last line is left out.
    """
    log = EventLog(path)
    scheduler = Scheduler(log.config, policy, log.cost_model)
    for record in log:
        try:
            got = tuple(scheduler.handle(record.event, record.now))
        except InternalError as error:
            raise ReplayError(f"{log.path}, line {record.line}: the scheduler refuses it: {error}") from error
        if got != record.actions:
            return Difference(record.line, record.actions, got)
    return None
