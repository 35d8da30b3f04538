"""What passes round the ring of a batch, and what each instance does with it."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from longspan.attention.segment_rows import SegmentRows, concat, row_index
from longspan.attention.slots import Kept
from longspan.core.actions import RunBatch


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


def ring_of(
    batch: RunBatch,
    instance: int,
    rows: list[SegmentRows],
    kept: Kept,
    device: torch.device,
) -> RingLayout | None:
    """Return an instance's part in the ring; None: it has none. rows, kept: its own, in the whole batch."""
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
            round_.keep_rows, round_.keep_slots = concat(keep_rows, device), concat(keep_slots, device)
        rounds.append(round_)
    return RingLayout(
        next=order[(place + 1) % size],
        previous=order[(place - 1) % size],
        own_rows=row_index([part for parts in mine.values() for part in parts], device),
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
