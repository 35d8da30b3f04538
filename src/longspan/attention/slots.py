"""Which slots of an instance's pool a batch reads, and which it takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from longspan.core.actions import RunBatch, Segment

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


Kept = dict[str, list[tuple[int, torch.Tensor]]]
"""By request: (first token, slots) of each range that stays here."""


def slots_of(
    batch: RunBatch, instance: int, book: SlotBook
) -> tuple[dict[str, torch.Tensor], Kept, torch.Tensor]:
    """Return slots by request of what is held here, what of its segment stays here, and those of lone tokens, in order.

    What stays here takes its slots. A lone token that is computed here meets itself in the pool, so its own slot is
    among those that are held.
    """
    held: dict[str, torch.Tensor] = {}
    lone: list[Segment] = []
    for segment in batch.segments:
        if segment.length == 1 and segment.compute == (instance,):
            lone.append(segment)
        elif planned := context_at(segment, instance):
            held[segment.request_id] = _held(book, segment, segment.start)
            _check_held(batch, instance, segment, len(held[segment.request_id]), planned)
    lone_slots = book.allocate_each([(segment.residence, segment.start) for segment in lone])
    for segment in lone:
        held[segment.request_id] = _held(book, segment, segment.end)
        _check_held(batch, instance, segment, len(held[segment.request_id]) - 1, context_at(segment, instance))
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


def _held(book: SlotBook, segment: Segment, below: int) -> torch.Tensor:
    """Slots (int64) of the request's tokens before a position, in all residences that it refers to."""
    return book.held(segment.residence, below, segment.earlier)


def context_at(segment: Segment, instance: int) -> int:
    """Return how many tokens before the segment an instance holds."""
    for holder, tokens in segment.context:
        if holder == instance:
            return tokens
    return 0
