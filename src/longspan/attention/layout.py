"""One instance's part in a batch: which rows it computes, what it keeps, whom it asks, answers and lends context.

Worked out once for each batch, from the `RunBatch` alone and this instance's slots, and used in every layer. All
instances derive their parts from the same `RunBatch`, so both ends of every exchange agree without a word.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Protocol

import numpy as np
import torch

from longspan.attention.backend import PagedSegment
from longspan.core.actions import RunBatch, Segment
from longspan.core.loans import loans

Earlier = tuple[tuple[int, int], ...]
"""(residence, length) of each residence before a request's own."""


class SlotBook(Protocol):
    """The pool's side of a layout: where tokens of a residence are, and where new ones go."""

    def held(self, residence: int, below: int, earlier: Earlier = ()) -> torch.Tensor:
        """Return slots (int64) of the residence's tokens here, at positions below `below`, in any order.

        earlier: as `Segment.earlier` has it; with the tokens of these.
        """
        ...

    def allocate(self, residence: int, start: int, end: int) -> torch.Tensor:
        """Take slots (int64) for the tokens at positions [start, end) of the residence, from now on held here."""
        ...

    def allocate_each(self, tokens: Sequence[tuple[int, int]]) -> torch.Tensor:
        """Take slots (int64), one for each (residence, position)."""
        ...


@dataclass(frozen=True, slots=True)
class SegmentRows:
    """Rows [start, stop) of this instance belong to the segment, and are tokens first, first + step, ...

    A segment has one of these on each instance that computes it, or several where it is cut into pieces.
    """

    segment: Segment
    start: int
    stop: int
    first: int
    step: int

    @property
    def last(self) -> int:
        """The position of the last of them."""
        return self.first + self.step * (self.stop - self.start - 1)


@dataclass(frozen=True, slots=True)
class Tile:
    """Queries q attend to keys k of a visiting block: to all, or causally, row i to keys 0..i of as many."""

    q: slice
    k: slice
    causal: bool = True


@dataclass(slots=True)
class RingRound:
    """What to do with the block that visits in one round: attend to it, and keep the rows that the plan says."""

    block_tokens: int
    tiles: list[Tile] = field(default_factory=list)
    keep_rows: torch.Tensor | None = None
    keep_slots: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class RingLayout:
    """rounds[0] is this instance's own block; rounds[r] visits from r places before it in the ring."""

    next: int
    previous: int
    own_rows: slice | torch.Tensor
    rounds: list[RingRound]


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


@dataclass(frozen=True, slots=True)
class BatchLayout:
    """One instance's part in a batch.

    rows: this instance's rows of each segment, in order; num_rows in all.
    solo: rows of segments of several tokens that this instance computes alone: causal among themselves.
    local: rows and the local slots they attend to; a lone token's own slot is among them.
    own_rows, own_slots: which rows' new KV goes straight into the pool.
    emits: (request id, row) of each row after which a token is sampled here.
    """

    num_rows: int
    rows: list[SegmentRows]
    solo: list[slice]
    local: list[PagedSegment]
    own_rows: slice | torch.Tensor
    own_slots: torch.Tensor
    ring: RingLayout | None
    asks: list[Asks]
    answers: list[Answers]
    lends: list[Lends]
    borrows: list[Borrows]
    emits: list[tuple[str, int]]


def plan_layout(
    batch: RunBatch,
    instance: int,
    book: SlotBook,
    device: torch.device,
    may_lend: Callable[[int], bool] = lambda peer: False,
) -> BatchLayout:
    """Derive `instance`'s part in the batch, and allocate the slots of what it keeps.

    may_lend: whether this instance and a peer lend each other context; they agree on it.
    """
    rows = list(_rows(batch, instance))
    held, kept, lone_slots = _slots(batch, instance, book)
    lent = _lent(batch, instance, may_lend)
    solo, local, own_rows, own_slots, emits = [], [], [], [], []
    for part in rows:
        segment = part.segment
        context = held.get(segment.request_id)
        if segment.emits and part.last == segment.end - 1:
            emits.append((segment.request_id, part.stop - 1))
        if len(segment.compute) == 1:
            own_rows.append(part)
            if segment.length > 1:
                ((_, slots),) = kept[segment.request_id]
                own_slots.append(slots)
                solo.append(slice(part.start, part.stop))
        if context is not None:
            local.append(PagedSegment(part.start, part.stop, context))
    if own_slots and len(lone_slots):  # a chunk beside decodes: in the order of the rows
        lone = iter([lone_slots[place : place + 1] for place in range(len(lone_slots))])
        chunks = iter(own_slots)
        own_slots = [next(lone) if part.segment.length == 1 else next(chunks) for part in own_rows]
    elif len(lone_slots):
        own_slots = [lone_slots]
    return BatchLayout(
        num_rows=rows[-1].stop if rows else 0,
        rows=rows,
        solo=solo,
        local=local,
        own_rows=_row_index(own_rows, device),
        own_slots=_concat(own_slots, device),
        ring=_ring(batch, instance, rows, kept, device),
        asks=list(_asks(batch, instance, rows, lent, device)),
        answers=list(_answers(batch, instance, held, lent)),
        lends=list(_lends(batch, instance, held, lent, device)),
        borrows=list(_borrows(batch, instance, rows, lent, device)),
        emits=emits,
    )


Kept = dict[str, list[tuple[int, torch.Tensor]]]
"""By request: (first token, slots) of each range that stays here."""


def _slots(
    batch: RunBatch, instance: int, book: SlotBook
) -> tuple[dict[str, torch.Tensor], Kept, torch.Tensor]:
    """Slots by request of what is held here, what of its segment stays here, and those of lone tokens, in order.

    A lone token that is computed here meets itself in the pool, so its own slot is among those that are held.
    """
    held: dict[str, torch.Tensor] = {}
    lone: list[Segment] = []
    for segment in batch.segments:
        if segment.length == 1 and segment.compute == (instance,):
            lone.append(segment)
        elif planned := _context_at(segment, instance):
            held[segment.request_id] = _held(book, segment, segment.start)
            _check_held(batch, instance, segment, len(held[segment.request_id]), planned)
    lone_slots = book.allocate_each([(segment.residence, segment.start) for segment in lone])
    for segment in lone:
        held[segment.request_id] = _held(book, segment, segment.end)
        _check_held(batch, instance, segment, len(held[segment.request_id]) - 1, _context_at(segment, instance))
    kept: Kept = {}
    for segment in batch.segments:
        if segment.length > 1 or len(segment.compute) > 1:
            kept[segment.request_id] = [
                (r.start, book.allocate(segment.residence, r.start, r.end))
                for r in segment.store
                if r.instance == instance
            ]
    return held, kept, lone_slots


def _check_held(batch: RunBatch, instance: int, segment: Segment, known: int, planned: int) -> None:
    assert known == planned, (
        f"batch {batch.batch_id}: instance {instance} holds {known} tokens of {segment.request_id}, "
        f"the plan says {planned}"
    )


def positions_of(layout: BatchLayout) -> np.ndarray:
    """Return the position in its request of each row's token, int64 [T]."""
    if not layout.rows:
        return np.zeros(0, dtype=np.int64)
    return np.concatenate(
        [part.first + part.step * np.arange(part.stop - part.start, dtype=np.int64) for part in layout.rows]
    )


def lengths_of(layout: BatchLayout, prompt_tokens: Mapping[str, int]) -> np.ndarray:
    """Return the length that each row's request has when the row's token is computed, int64 [T].

    It is that of the whole prompt for all tokens of it, however it is cut up, and position + 1 for those that follow.
    prompt_tokens: the length of the prompt of each request that may have rows of it.
    """
    lengths_T = positions_of(layout) + 1
    for part in layout.rows:
        prompt = prompt_tokens.get(part.segment.request_id, 0)
        np.maximum(lengths_T[part.start : part.stop], prompt, out=lengths_T[part.start : part.stop])
    return lengths_T


def _held(book: SlotBook, segment: Segment, below: int) -> torch.Tensor:
    """Slots (int64) of the request's tokens before a position, in all residences that it refers to."""
    return book.held(segment.residence, below, segment.earlier)


def _context_at(segment: Segment, instance: int) -> int:
    for holder, tokens in segment.context:
        if holder == instance:
            return tokens
    return 0


def _rows(batch: RunBatch, instance: int) -> Iterator[SegmentRows]:
    row = 0
    for segment in batch.segments:
        for first, count, step in segment.pieces(instance):
            yield SegmentRows(segment, row, row + count, first, step)
            row += count


def _ring(
    batch: RunBatch,
    instance: int,
    rows: list[SegmentRows],
    kept: Kept,
    device: torch.device,
) -> RingLayout | None:
    shared = [segment for segment in batch.segments if len(segment.compute) > 1 and instance in segment.compute]
    if not shared:
        return None
    members = {frozenset(segment.compute) for segment in batch.segments if len(segment.compute) > 1}
    assert len(members) == 1, f"batch {batch.batch_id} has several rings: {sorted(map(sorted, members))}"
    mine: dict[str, list[SegmentRows]] = {segment.request_id: [] for segment in shared}
    for part in rows:
        if part.segment.request_id in mine:
            mine[part.segment.request_id].append(part)
    order = sorted(set(shared[0].compute))
    size, place = len(order), order.index(instance)
    rounds = []
    for distance in range(size):
        owner = order[(place - distance) % size]
        tiles, keep_rows, keep_slots = [], [], []
        offset = 0  # of the piece in the owner's packed block
        for segment in shared:
            for first, count, step in segment.pieces(owner):
                theirs = SegmentRows(segment, offset, offset + count, first, step)
                tiles += [tile for part in mine[segment.request_id] if (tile := _tile(part, theirs)) is not None]
                for start, slots in kept[segment.request_id]:
                    low, high = (
                        min(count, max(0, -(-(edge - first) // step))) for edge in (start, start + len(slots))
                    )
                    of_piece = torch.arange(low, high)
                    keep_rows.append(offset + of_piece)
                    keep_slots.append(slots[first + of_piece * step - start])
                offset += count
        round_ = RingRound(offset, sorted(tiles, key=lambda tile: not tile.causal))
        if sum(map(len, keep_rows)):
            round_.keep_rows, round_.keep_slots = _concat(keep_rows, device), _concat(keep_slots, device)
        rounds.append(round_)
    return RingLayout(
        next=order[(place + 1) % size],
        previous=order[(place - 1) % size],
        own_rows=_row_index([part for parts in mine.values() for part in parts], device),
        rounds=rounds,
    )


def _tile(mine: SegmentRows, theirs: SegmentRows) -> Tile | None:
    """What rows of this instance see of a piece that visits; None: nothing."""
    rows, keys = slice(mine.start, mine.stop), slice(theirs.start, theirs.stop)
    if mine.step == 1:  # contiguous: all of those before, or itself
        if theirs.last < mine.first:
            return Tile(rows, keys, causal=False)
        return Tile(rows, keys) if theirs.first == mine.first else None
    # Query i is token first + i*n, key j is token their first + j*n: visible if j <= i, less one if theirs comes later.
    count, later = mine.stop - mine.start, theirs.first > mine.first
    if count == later:
        return None
    return Tile(slice(mine.start + later, mine.stop), slice(theirs.start, theirs.start + count - later))


Lent = dict[tuple[str, int, int], int]
"""Tokens by (request, holder, borrower)."""


def _lent(batch: RunBatch, instance: int, may_lend: Callable[[int], bool]) -> Lent:
    """What this instance lends, and what it borrows."""
    return {
        (segment.request_id, holder, borrower): tokens
        for segment in batch.segments
        if len(segment.compute) > 1
        for (holder, borrower), tokens in loans(segment).items()
        if instance in (holder, borrower) and may_lend(borrower if instance == holder else holder)
    }


def _asked(segment: Segment, holder: int, asker: int, lent: Lent) -> int:
    """How many tokens of the context queries of `asker` meet at the holder."""
    return _context_at(segment, holder) - lent.get((segment.request_id, holder, asker), 0)


def _asks(
    batch: RunBatch, instance: int, rows: list[SegmentRows], lent: Lent, device: torch.device
) -> Iterator[Asks]:
    for peer in batch.group:
        asking = [
            part
            for part in rows
            if peer != instance and part.stop > part.start and _asked(part.segment, peer, instance, lent)
        ]
        if asking:
            yield Asks(peer, _row_index(asking, device), sum(part.stop - part.start for part in asking))


def _answers(batch: RunBatch, instance: int, held: dict[str, torch.Tensor], lent: Lent) -> Iterator[Answers]:
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


def _lends(
    batch: RunBatch, instance: int, held: dict[str, torch.Tensor], lent: Lent, device: torch.device
) -> Iterator[Lends]:
    for peer in batch.group:
        slots = [
            held[segment.request_id][:tokens]
            for segment in batch.segments
            if (tokens := lent.get((segment.request_id, instance, peer)))
        ]
        if slots:
            yield Lends(peer, _concat(slots, device))


def _borrows(
    batch: RunBatch, instance: int, rows: list[SegmentRows], lent: Lent, device: torch.device
) -> Iterator[Borrows]:
    for peer in batch.group:
        segments, count = [], 0
        for segment in batch.segments:
            if tokens := lent.get((segment.request_id, peer, instance)):
                places = torch.arange(count, count + tokens, device=device)
                segments += [PagedSegment(p.start, p.stop, places) for p in rows if p.segment is segment]
                count += tokens
        if segments:
            yield Borrows(peer, count, segments)


def _row_index(parts: list[SegmentRows], device: torch.device) -> slice | torch.Tensor:
    """A slice where the rows lie side by side: it copies nothing."""
    if not parts:
        return slice(0, 0)
    if all(one.stop == next_.start for one, next_ in pairwise(parts)):
        return slice(parts[0].start, parts[-1].stop)
    return _concat([torch.arange(part.start, part.stop) for part in parts], device)


def _concat(parts: list[torch.Tensor], device: torch.device) -> torch.Tensor:
    return torch.cat(parts).to(device) if parts else torch.zeros(0, dtype=torch.int64, device=device)
