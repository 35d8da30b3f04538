"""Decode iterations that repeat each other: what they change is added up, and worked out when somebody looks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from longspan.core.actions import RunBatch
from longspan.core.events import BatchCompleted
from longspan.metrics.fleet.lives import Life, Totals
from longspan.metrics.fleet.spans import Running
from longspan.metrics.kv_slots import KVSlots


class Line:
    """Batches of one group, each the one before it again, one token further.

    It holds as long as none of its requests ends, moves, or is interrupted. ran: how its batches are shown. ids: of its
    requests.
    """

    __slots__ = ("_ahead", "_done", "_first", "_issued", "_last", "_lives", "_segments", "ids", "ran")

    def __init__(self, batch: RunBatch, lives: Sequence[Life], ran: Running) -> None:
        self.ran = ran
        self.ids = {life.id for life in lives}
        self._first = batch.batch_id
        self._segments = batch.segments
        self._lives = lives
        self._ahead = 1  # tokens from the first batch to the one that comes next
        self._issued = self._done = 0  # batches that have yet to be worked out
        self._last = 0.0

    @classmethod
    def begin(cls, batch: RunBatch, lives: Mapping[str, Life], ran: Running) -> Line | None:
        """Return one that the batch begins; None: it is no decode iteration of requests that have begun to answer."""
        own: list[Life] = []
        for segment in batch.segments:
            life = lives.get(segment.request_id)
            if life is None or not life.output or segment.length != 1 or not segment.emits:
                return None
            own.append(life)
        return cls(batch, own, ran)

    def take(self, batch: RunBatch) -> bool:
        """Count the group's next batch, if it is the same again; tells whether it is."""
        ahead = self._ahead
        if len(batch.segments) != len(self._segments):
            return False
        for new, old in zip(batch.segments, self._segments, strict=True):
            if (
                new.start != old.start + ahead or new.length != 1 or new.request_id != old.request_id
                or new.compute != old.compute
            ):  # fmt: skip
                return False
        self._ahead = ahead + 1
        self._issued += 1
        return True

    def complete(self, event: BatchCompleted, now: float) -> bool:
        """Count the end of one of its batches, if all of its requests go on; tells whether they do."""
        if event.batch_id < self._first or len(event.outputs) != len(self._lives):
            return False
        if any([output.finish_reason is not None for output in event.outputs]):
            return False
        self._done += 1
        self._last = now
        return True

    def settle(self, slots: KVSlots, totals: Totals) -> None:
        """Enter what was counted since the last time."""
        issued, done, self._issued, self._done = self._issued, self._done, 0, 0
        if not issued and not done:
            return
        for segment, life in zip(self._segments, self._lives, strict=True):
            if issued:
                slots.extend(segment.residence, segment.compute[0], issued)
            life.in_flight += issued - done
            life.computed += done
            if done:
                life.emit(self._last, done)
        totals.output_tokens += done * len(self._lives)
