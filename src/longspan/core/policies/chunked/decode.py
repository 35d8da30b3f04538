"""Decodes: all of them, before any chunk; and where their tokens go."""

from __future__ import annotations

from operator import attrgetter

from longspan.core.books.request import Request, RequestStatus
from longspan.core.policies.chunked.iteration import Iteration
from longspan.core.policies.chunked.memory.kvp import span
from longspan.core.state import SchedulerState


def ready_decodes(state: SchedulerState, iteration: Iteration) -> list[Request]:
    """Return the decodes whose instances can all take a batch."""
    found = {
        request.id: request
        for instance in state.cluster.resting()
        for request in instance.ready.values()
        if request.status is RequestStatus.DECODING and iteration.covers(span(state, request))
    }
    return list(found.values())


def add_decodes(state: SchedulerState, iteration: Iteration, requests: list[Request]) -> None:
    """Add as many decodes as a batch takes, in turn; the oldest if slots are short: perhaps one of them ends."""
    if not requests:
        return
    slots = {number: state.cluster[number].unreserved for number in iteration.instances}
    short = sum(slots.values()) < len(requests)
    requests.sort(key=attrgetter("arrival_index" if short else "ready_order"))
    left = state.config.max_batch_requests
    for request in requests:
        master = _take_slot(state, request, slots)
        if master is not None:
            iteration.add_decode(request, master, state.placement.context(request.id))
            left -= 1
            if not left:
                return


def _take_slot(state: SchedulerState, request: Request, slots: dict[int, int]) -> int | None:
    """Where the newest token is, else the holder with most of the KV, else who has most slots; None if nobody has."""
    if request.reserved:  # the prompt's last token
        return request.reserved[0].instance
    newest = state.placement.last_holder(request.id)
    if slots.get(newest, 0) > 0:
        slots[newest] -= 1
        return newest
    held = state.placement.counts(request.id)
    able = [number for number, free in slots.items() if free > 0]
    master = max(able, key=lambda n: (held.get(n, 0), slots[n], -n), default=None)
    if master is not None:
        slots[master] -= 1
    return master
