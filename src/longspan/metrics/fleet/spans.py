"""Which instances run what: now, and over time."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from longspan.core.actions import MigrateKV, RunBatch

Kind = Literal["prefill", "decode", "mixed", "move"]

MOST_NAMED = 10
"""Requests of a batch that are named; of the others it is told how many they are."""
MOST_NEW = 600
"""Spans that are kept until they are told."""
_GAP_S = 0.05


@dataclass(slots=True)
class Span:
    """Batches of the same kind and requests, one after the other on the same instances; or a migration.

    requests: (number, tokens) of the first, by what they computed. count: batches. tokens: that all of them computed.
    told: whether its present end has been told.
    """

    number: int
    start: float
    end: float
    group: tuple[int, ...]
    kind: Kind
    requests: tuple[tuple[int, int], ...]
    num_requests: int
    count: int = 1
    tokens: int = 0
    told: bool = False


@dataclass(slots=True)
class Running:
    """A batch or a migration under way. begun: when its instances were free for it, if they are."""

    number: int
    issued: float
    group: tuple[int, ...]
    kind: Kind
    requests: tuple[tuple[int, int], ...]
    num_requests: int
    tokens: int
    begun: float | None = None


class Spans:
    """What ran, and what runs. count: what the numbers of spans go on from."""

    def __init__(self, count: int = 0) -> None:
        """Begin without any."""
        self.batches: dict[int, Running] = {}
        self.moves: dict[int, Running] = {}
        self._last_end: dict[int, float] = {}
        self._latest: dict[int, Span] = {}
        self._new: deque[Span] = deque(maxlen=MOST_NEW)
        self.count = count

    def issue(self, batch: RunBatch, named: list[tuple[int, int]], now: float) -> Running:
        """Note a batch, and return how it is shown. named: (number, tokens) of its requests."""
        tokens = sum([tokens for _, tokens in named])
        decodes = sum([segment.length == 1 and segment.start > 0 for segment in batch.segments])
        kind: Kind = "decode" if decodes == len(batch.segments) else "mixed" if decodes else "prefill"
        if len(named) > MOST_NAMED:
            named = sorted(named, key=lambda each: -each[1])[:MOST_NAMED]
        ran = self.batches[batch.batch_id] = Running(
            batch.batch_id, now, batch.group, kind, tuple(named), len(batch.segments), tokens
        )
        return ran

    def issue_again(self, number: int, ran: Running, now: float) -> None:
        """Note a batch that has the group, kind and requests of another."""
        self.batches[number] = Running(number, now, ran.group, ran.kind, ran.requests, ran.num_requests, ran.tokens)

    def issue_move(self, move: MigrateKV, number: int, now: float) -> None:
        """Note a migration of the request of that number."""
        group = (move.source, move.target)
        self.moves[move.migration_id] = Running(
            move.migration_id, now, group, "move", ((number, move.num_tokens),), 1, move.num_tokens
        )

    def leave_first_stage(self, batch_id: int, now: float) -> None:
        """Its instances may begin something else."""
        ran = self.batches.get(batch_id)
        if ran is not None and ran.begun is None:
            self._free(ran, now)

    def end(self, ran: Running | None, now: float) -> None:
        """It is through. None: it began before anybody looked."""
        if ran is None:
            return
        if ran.begun is None:
            self._free(ran, now)
        span = self._latest.get(ran.group[0])
        begun = ran.issued if ran.begun is None else ran.begun
        if span is not None and self._goes_on(span, ran, begun):
            span.end, span.count, span.tokens = now, span.count + 1, span.tokens + ran.tokens
        else:
            self.count += 1
            span = Span(self.count, begun, now, ran.group, ran.kind, ran.requests, ran.num_requests)
            span.tokens = ran.tokens
            self._latest |= dict.fromkeys(ran.group, span)
        if span.told or span.count == 1:
            span.told = False
            self._new.append(span)

    def now_running(self) -> Iterator[Running]:
        """Yield of each group what has begun: with several stages the oldest of them."""
        seen: set[tuple[int, ...]] = set()
        for ran in (*self.batches.values(), *self.moves.values()):
            if ran.group not in seen:
                seen.add(ran.group)
                yield ran

    def take(self) -> list[Span]:
        """Return what has come to an end, or has gone on, since the last time."""
        found = list(self._new)
        self._new.clear()
        for span in found:
            span.told = True
        return found

    def _free(self, ran: Running, now: float) -> None:
        """Its instances may begin something else; it began when they were free for it."""
        begun, last_end = ran.issued, self._last_end
        for number in ran.group:
            before = last_end.get(number, begun)
            if before > begun:
                begun = before
            last_end[number] = now
        ran.begun = begun

    def _goes_on(self, span: Span, ran: Running, begun: float) -> bool:
        """Whether it is as the one before, and right behind it, with nothing between on any instance."""
        if begun - span.end > _GAP_S or span.kind != ran.kind or span.num_requests != ran.num_requests:
            return False
        if span.group != ran.group:
            return False
        if span.requests is not ran.requests:
            if [number for number, _ in span.requests] != [number for number, _ in ran.requests]:
                return False
            ran.requests = span.requests  # so that those that come are known at once
        return all([self._latest.get(number) is span for number in ran.group])
