"""Whom an instance asks, answers and lends context that does not lie where the queries are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from longspan.attention.backend import PagedSegment
from longspan.attention.segment_rows import SegmentRows, concat, row_index
from longspan.attention.slots import context_at
from longspan.core.actions import RunBatch, Segment
from longspan.core.loans import loans


@dataclass(frozen=True, slots=True)
class Asks:
    """These rows' queries go to `peer`, which holds some of their context."""

    peer: int
    rows: slice | torch.Tensor
    num_rows: int


@dataclass(frozen=True, slots=True)
class Answers:
    """`peer` sends `num_rows` queries; they attend to these segments of the local pool."""

    peer: int
    num_rows: int
    segments: list[PagedSegment]


@dataclass(frozen=True, slots=True)
class Lends:
    """Keys and values of these slots of the local pool go to `peer`, which attends to them itself."""

    peer: int
    slots: torch.Tensor


@dataclass(frozen=True, slots=True)
class Borrows:
    """`peer` sends keys and values of `num_tokens` tokens; own rows attend to these segments of them.

    The slots of a segment are their places in what comes.
    """

    peer: int
    num_tokens: int
    segments: list[PagedSegment]


Lent = dict[tuple[str, int, int], int]
"""Tokens by (request, holder, borrower)."""


def lent_in(batch: RunBatch, instance: int, may_lend: Callable[[int], bool]) -> Lent:
    """Return what this instance lends, and what it borrows. may_lend: as in `plan_layout`."""
    return {
        (segment.request_id, holder, borrower): tokens
        for segment in batch.segments
        if len(segment.compute) > 1
        for (holder, borrower), tokens in loans(segment).items()
        if instance in (holder, borrower) and may_lend(borrower if instance == holder else holder)
    }


def _asked(segment: Segment, holder: int, asker: int, lent: Lent) -> int:
    """How many tokens of the context queries of `asker` meet at the holder."""
    return context_at(segment, holder) - lent.get((segment.request_id, holder, asker), 0)


def asks_of(
    batch: RunBatch, instance: int, rows: list[SegmentRows], lent: Lent, device: torch.device
) -> Iterator[Asks]:
    """Yield, by peer, which of this instance's rows ask it."""
    for peer in batch.group:
        asking = [
            part
            for part in rows
            if peer != instance and part.stop > part.start and _asked(part.segment, peer, instance, lent)
        ]
        if asking:
            yield Asks(peer, row_index(asking, device), sum(part.stop - part.start for part in asking))


def answers_of(batch: RunBatch, instance: int, held: dict[str, torch.Tensor], lent: Lent) -> Iterator[Answers]:
    """Yield, by peer, what it asks. held: slots of what lies here, by request."""
    for peer in batch.group:
        segments, row = [], 0
        for segment in batch.segments:
            count = sum([tokens for _, tokens, _ in segment.pieces(peer)])
            if peer != instance and count and (asked := _asked(segment, instance, peer, lent)):
                slots = held[segment.request_id]  # the very tensor where it is all: rows are joined by it
                segments.append(PagedSegment(row, row + count, slots if asked == len(slots) else slots[-asked:]))
                row += count
        if segments:
            yield Answers(peer, row, segments)


def lends_of(
    batch: RunBatch, instance: int, held: dict[str, torch.Tensor], lent: Lent, device: torch.device
) -> Iterator[Lends]:
    """Yield, by peer, what is lent to it. held: slots of what lies here, by request."""
    for peer in batch.group:
        slots = [
            held[segment.request_id][:tokens]
            for segment in batch.segments
            if (tokens := lent.get((segment.request_id, instance, peer)))
        ]
        if slots:
            yield Lends(peer, concat(slots, device))


def borrows_of(
    batch: RunBatch, instance: int, rows: list[SegmentRows], lent: Lent, device: torch.device
) -> Iterator[Borrows]:
    """Yield, by peer, what is borrowed of it, and which of this instance's rows attend to that."""
    for peer in batch.group:
        segments, count = [], 0
        for segment in batch.segments:
            if tokens := lent.get((segment.request_id, peer, instance)):
                places = torch.arange(count, count + tokens, device=device)
                segments += [PagedSegment(p.start, p.stop, places) for p in rows if p.segment is segment]
                count += tokens
        if segments:
            yield Borrows(peer, count, segments)
