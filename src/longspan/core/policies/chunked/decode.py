"""Decodes: all of them, before any chunk; and where their tokens go."""

from __future__ import annotations

from math import ceil
from operator import attrgetter

from longspan.core.books.request import Request
from longspan.core.policies.chunked.iteration import Iteration
from longspan.core.state import SchedulerState

_FEW = 4
"""Decodes that take hardly longer together than alone."""


def ready_decodes(state: SchedulerState, iteration: Iteration) -> list[Request]:
    """Return the decodes whose instances can all take a batch."""
    decodes, holders = state.cluster.ready_decodes, state.cluster.decode_holders
    able = {each for each in set(holders.values()) if iteration.covers(each)}
    return [
        request
        for request, each in zip(decodes.values(), holders.values(), strict=True)
        if each in able and (not request.reserved or request.reserved[0].instance in iteration)
    ]


def even_share(state: SchedulerState, iteration: Iteration, num_ready: int) -> int:
    """Return how many decodes the batch has at most, so that all of a pipeline's batches have alike.

    Else those that once were in one batch stay in one: that is long, and none of them gets its tokens in time, while
    the others have time to spare.
    """
    later = [work.action for number in iteration.instances for work in state.cluster[number].later]
    batches = {batch.batch_id: batch for batch in later}
    num_others = sum([segment.emits for batch in batches.values() for segment in batch.segments])
    return max(_FEW, ceil((num_ready + num_others) / state.config.pp))


def add_decodes(state: SchedulerState, iteration: Iteration, requests: list[Request], most: int) -> None:
    """Add as many decodes as a batch takes, in turn; the oldest if slots are short: perhaps one of them ends."""
    if not requests:
        return
    slots = {number: state.cluster[number].unreserved for number in iteration.instances}
    short = sum(slots.values()) < len(requests)
    requests.sort(key=attrgetter("arrival_index" if short else "ready_order"))
    chosen: list[tuple[Request, int]] = []
    own = state.placement.own
    for request in requests:
        if request.reserved:  # the prompt's last token
            master: int | None = request.reserved[0].instance
        else:
            master = own[request.id].owners[-1]
            if slots.get(master, 0) > 0:  # as nearly always
                slots[master] -= 1
            else:
                master = _other_slot(state, request, slots)
        if master is not None:
            chosen.append((request, master))
            if len(chosen) == most:
                break
    iteration.add_decodes(chosen, state.cluster.decode_holders, state.placement.context)


def _other_slot(state: SchedulerState, request: Request, slots: dict[int, int]) -> int | None:
    """Where there is none beside the newest token: the holder with most of the KV, else who has most slots; None if
    nobody has."""
    held = state.placement.counts(request.id)
    able = [number for number, free in slots.items() if free > 0]
    master = max(able, key=lambda n: (held.get(n, 0), slots[n], -n), default=None)
    if master is not None:
        slots[master] -= 1
    return master
