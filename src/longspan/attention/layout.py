"""One instance's part in a batch: which rows it computes, what it keeps, whom it asks, answers and lends context.

Worked out once for each batch, from the `RunBatch` alone and this instance's slots, and used in every layer. All
instances derive their parts from the same `RunBatch`, so both ends of every exchange agree without a word.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from longspan.attention.backend import PagedSegment
from longspan.attention.context_layout import (
    Answers,
    Asks,
    Borrows,
    Lends,
    answers_of,
    asks_of,
    borrows_of,
    lends_of,
    lent_in,
)
from longspan.attention.ring_layout import RingLayout, ring_of
from longspan.attention.segment_rows import SegmentRows, concat, row_index, rows_of
from longspan.attention.slots import SlotBook, slots_of
from longspan.core.actions import RunBatch


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
    rows = list(rows_of(batch, instance))
    held, kept, lone_slots = slots_of(batch, instance, book)
    lent = lent_in(batch, instance, may_lend)
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
        own_rows=row_index(own_rows, device),
        own_slots=concat(own_slots, device),
        ring=ring_of(batch, instance, rows, kept, device),
        asks=list(asks_of(batch, instance, rows, lent, device)),
        answers=list(answers_of(batch, instance, held, lent)),
        lends=list(lends_of(batch, instance, held, lent, device)),
        borrows=list(borrows_of(batch, instance, rows, lent, device)),
        emits=emits,
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
