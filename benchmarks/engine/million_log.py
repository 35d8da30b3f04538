"""What an event log tells of the one long prompt in it: its chunks, its pauses, and whether any was computed twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from longspan.core.actions import MigrateKV, RunBatch, Segment, StopRequest
from longspan.core.events import BatchCompleted, RequestArrived
from longspan.metrics.event_log import LogRecord


@dataclass(frozen=True)
class Pause:
    """Between two of its chunks others ran, and it did not. batches: that began meanwhile; tokens: of theirs."""

    at_s: float
    seconds: float
    batches: int
    tokens: int
    stored: int


@dataclass
class LongLife:
    """lengths: of the prompt's chunks; widths: how many chunks so many instances computed.

    in_order: each chunk began where the one before ended. times_dropped: it lost its KV, to be computed again.
    migrated: tokens of KV that moved between instances. at_s of a pause: since the prompt arrived.
    """

    lengths: list[int] = field(default_factory=list)
    widths: Counter[int] = field(default_factory=Counter)
    in_order: bool = True
    times_dropped: int = 0
    migrated: int = 0
    pauses: list[Pause] = field(default_factory=list)

    @property
    def chunks(self) -> int:
        return len(self.lengths)

    @property
    def computed(self) -> int:
        return sum(self.lengths)

    @property
    def paused_s(self) -> float:
        return sum(pause.seconds for pause in self.pauses)

    def facts(self) -> dict[str, Any]:
        longest = max(self.pauses, key=lambda pause: pause.seconds, default=None)
        return {
            "chunks": self.chunks, "tokens_computed": self.computed, "in_order": self.in_order,
            "chunk_tokens": {"first": self.lengths[0], "median": median(self.lengths), "last": self.lengths[-1]},
            "chunks_by_instances": {str(width): count for width, count in sorted(self.widths.items())},
            "times_kv_dropped": self.times_dropped, "kv_tokens_migrated": self.migrated,
            "pauses": len(self.pauses), "paused_s": self.paused_s,
            "longest_pause": None if longest is None else vars(longest),
        }  # fmt: skip


class _Reader:
    def __init__(self, tokens: int) -> None:
        self.life = LongLife()
        self._tokens = tokens
        self._id: str | None = None
        self._arrived = 0.0
        self._stored = 0
        self._running: set[int] = set()
        self._idle_since: float | None = None
        self._others: list[RunBatch] = []

    def read(self, record: LogRecord) -> None:
        match record.event:
            case RequestArrived(request_id, self._tokens):
                self._id, self._arrived = request_id, record.now
            case BatchCompleted(batch_id) if batch_id in self._running:
                self._running.discard(batch_id)
                if not self._running and self._stored < self._tokens:
                    self._idle_since, self._others = record.now, []
        for action in record.actions:
            match action:
                case RunBatch():
                    self._begin(action, record.now)
                case StopRequest(self._id, _, "preempted"):
                    self.life.times_dropped += 1
                case MigrateKV() if action.request_id == self._id:
                    self.life.migrated += action.num_tokens

    def _begin(self, batch: RunBatch, now: float) -> None:
        mine = [segment for segment in batch.segments if segment.request_id == self._id]
        if not mine:
            self._others.append(batch)
            return
        (segment,) = mine
        if segment.start < self._tokens or segment.start < self._stored:
            self._chunk(segment)
            self._running.add(batch.batch_id)
        if self._idle_since is not None:
            # Others that began before its next chunk, in the same decision, did not keep it from running.
            if self._others and now > self._idle_since:
                tokens = sum(each.length for other in self._others for each in other.segments)
                self.life.pauses.append(
                    Pause(self._idle_since - self._arrived, now - self._idle_since, len(self._others), tokens,
                          segment.start)
                )  # fmt: skip
            self._idle_since = None

    def _chunk(self, segment: Segment) -> None:
        self.life.in_order &= segment.start == self._stored
        self._stored = segment.end
        self.life.lengths.append(segment.length)
        self.life.widths[len(segment.computing)] += 1


def read_life(records: Iterable[LogRecord], tokens: int) -> LongLife:
    """Of the prompt of so many tokens. records: of an event log."""
    reader = _Reader(tokens)
    for record in records:
        reader.read(record)
    return reader.life
