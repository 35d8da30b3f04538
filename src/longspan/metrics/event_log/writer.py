"""Writes an event log while serving goes on, whatever becomes of the log."""

from __future__ import annotations

import atexit
import logging
import secrets
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from longspan.config import SchedulerConfig
from longspan.core.actions import Action
from longspan.core.costs.cost_model import FittedCostModel
from longspan.core.decision import Decision
from longspan.core.events import Event
from longspan.core.policies import POLICIES, create_policy, policy_class
from longspan.core.policies.base import Policy
from longspan.core.policies.options import options_of
from longspan.metrics.event_log.background_file import MOST_PENDING_BYTES, BackgroundFile
from longspan.metrics.event_log.encoder import RecordEncoder
from longspan.metrics.event_log.files import create_log, is_special, piece_path
from longspan.metrics.event_log.history import FORMAT_VERSION

logger = logging.getLogger(__name__)

_ENOUGH_PENDING_BYTES = MOST_PENDING_BYTES // 2


@dataclass(frozen=True, slots=True)
class OpenedLog:
    """A new file for an event log, into which nothing has been written.

    asked_for: where it was to be. described: what all headers say, as JSON. max_bytes, keep: see `EventLogWriter`.
    """

    path: Path
    asked_for: Path
    descriptor: int
    described: bytes
    max_bytes: int | None
    keep: int | None


def open_log(
    path: Path | str, config: SchedulerConfig, cost_model: FittedCostModel | None = None, *,
    policy: Policy | None = None, max_bytes: int | None = None, keep: int | None = None, run: str | None = None,
) -> OpenedLog:  # fmt: skip
    """Return a new file, as `EventLogWriter` has it. Raises OSError, ValueError."""
    described = {
        "version": FORMAT_VERSION, "run": secrets.token_hex(8) if run is None else run, "piece": 1,
        **_describe(policy, config), "cost_model": cost_model,
    }  # fmt: skip
    asked_for, told = Path(path), msgspec.json.encode(described)
    found, descriptor = create_log(asked_for)
    return OpenedLog(found, asked_for, descriptor, told, None if is_special(found) else max_bytes, keep)


def tell_the_end(path: Path | str, error: Exception | str) -> str:
    """Return what is said of a log that ends before its run."""
    why = error if str(error) else type(error).__name__
    return f"the event log {path} cannot be written and is switched off; serving goes on: {why}"


class EventLogWriter:
    """Appends one line for each call of `Scheduler.handle`, in a new file. A killed process loses about a second of it.

    Nothing that goes wrong with the file is raised: the log ends there for good, with one warning, and `errors` counts
    it. Nor does `write` wait for a disk: what it does not take in time is such an error.

    path: of the file that it really is, which is not the one that was asked for where that exists; None: it could not
        be opened. Names that end in .gz are compressed.
    """

    def __init__(
        self,
        path: Path | str,
        config: SchedulerConfig,
        cost_model: FittedCostModel | None = None,
        *,
        policy: Policy | None = None,
        max_bytes: int | None = None,
        keep: int | None = None,
        run: str | None = None,
        waits: bool = False,
    ) -> None:
        """The header is on its way to the disk when this returns.

        policy: the one that decides, where that is an object; else it is the one that `config` names.
        max_bytes: a file that has so many, uncompressed, is left for a new one: the run's next piece. keep: so many
            pieces stay; older ones of this run are removed. run: what tells the pieces of this run from those of
            others; drawn by default. waits: whether `write` waits for a slow disk, for who serves nobody.
        """
        self._begin(path, waits)
        try:
            self._write_to(open_log(path, config, cost_model, policy=policy, max_bytes=max_bytes, keep=keep, run=run))
        except Exception as error:
            self.switch_off(error)

    @classmethod
    def to(cls, log: OpenedLog, tell: Callable[[str], object]) -> Self:
        """Return one that goes on from there. tell: is told, on any thread, in words, if the log ends early."""
        writer = cls.__new__(cls)
        writer._begin(log.asked_for, waits=False, tell=tell)
        try:
            writer._write_to(log)
        except Exception as error:
            writer.switch_off(error)
        return writer

    def _begin(self, path: Path | str, waits: bool, tell: Callable[[str], object] | None = None) -> None:
        self.errors = 0
        self.path: Path | None = None
        self._asked_for, self._waits = path, waits
        self._tell = logger.warning if tell is None else tell
        self._bytes = self._records = 0
        self._lock = threading.Lock()
        self._file: BackgroundFile | None = None  # None: nothing is to be written any more
        self._opened: BackgroundFile | None = None
        self._encoder, self._json = RecordEncoder(), msgspec.json.Encoder()

    def _write_to(self, log: OpenedLog) -> None:
        self.path, self._max_bytes, self._keep = log.path, log.max_bytes, log.keep
        self._header = self._described = msgspec.json.decode(log.described, type=dict[str, Any])
        self._opened = BackgroundFile(log.descriptor, log.path.suffix == ".gz", self.switch_off)
        self._file = self._opened
        self._begin_piece(self._opened)
        self._opened.hurry()
        atexit.register(self.close)

    @property
    def is_on(self) -> bool:
        return self._file is not None

    def write(self, now: float, event: Event, actions: Sequence[Action], why: Sequence[Decision] = ()) -> None:
        """Write one call of `handle`."""
        file = self._file
        if file is None:
            return
        try:
            if self._max_bytes is not None and self._bytes >= self._max_bytes and self._records:
                self._rotate(file)
            line = self._encoder.encode(now, event, actions, why)
            self._bytes += len(line)
            self._records += 1
            file.put(line)
            if self._waits and file.pending_bytes > _ENOUGH_PENDING_BYTES:
                file.wait_for_room()
        except Exception as error:
            self.switch_off(error)

    def flush(self) -> None:
        """Have it written soon; does not wait for it."""
        if self._file is not None:
            self._file.hurry()

    def close(self) -> None:
        """Write what is left; a disk that is stuck is not waited for."""
        atexit.unregister(self.close)
        self._file = None
        if self._opened is not None:
            self._opened.close()

    def __enter__(self) -> EventLogWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _begin_piece(self, file: BackgroundFile) -> None:
        header = self._json.encode(self._header) + b"\n"
        self._bytes, self._records = len(header), 0
        file.put(header)

    def _rotate(self, file: BackgroundFile) -> None:
        """What the next piece needs to be read by itself goes into its header."""
        assert self.path is not None
        self._encoder, left_over = self._encoder.next_piece()
        piece = self._header["piece"] + 1
        removed = None
        if self._keep is not None and piece > self._keep:
            removed = piece_path(self.path, piece - self._keep)
        file.go_on_in(piece_path(self.path, piece), removed)
        self._header = {**self._described, "piece": piece, **left_over}
        self._begin_piece(file)

    def switch_off(self, error: Exception) -> None:
        """End it for good in this run: a log with a hole in it would not replay. On any thread."""
        file, self._file = self._file, None
        if file is not None:
            file.end()
        with self._lock:
            if self.errors:
                return
            self.errors = 1
        self._tell(tell_the_end(self.path or self._asked_for, error))


def _describe(policy: Policy | None, config: SchedulerConfig) -> dict[str, Any]:
    """Of the header. own_policy: the class of one that cannot be had by its name."""
    if policy is None:
        policy = create_policy(config.policy)
    config = replace(config, policy=policy.name)
    header = {"policy": policy.name, "options": options_of(policy), "config": config}
    kind = type(policy)
    if policy.name in POLICIES and policy_class(policy.name) is kind:
        return header
    return {**header, "own_policy": f"{kind.__module__}:{kind.__qualname__}"}
