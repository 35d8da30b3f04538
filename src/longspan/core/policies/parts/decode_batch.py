"""A decode iteration: which requests of a group, and which instance computes and keeps the token of each."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from operator import attrgetter

from longspan.core.books.request import Request
from longspan.core.policies.parts.decode_groups import DecodeGroup, form_groups
from longspan.core.policies.parts.shortage import choose_victim_inside
from longspan.core.state import SchedulerState

_ARRIVAL = attrgetter("arrival_index")


def choose_requests(group: DecodeGroup) -> list[Request]:
    """Choose all in turn if the batch is limited by its size; the oldest if it is limited by KV room."""
    if group.surplus < 0:
        return sorted(group.requests, key=_ARRIVAL)[: group.room]
    return sorted(group.requests, key=attrgetter("ready_order"))[: group.size]


def run_decode(state: SchedulerState, requests: Sequence[Request], masters: Sequence[int]) -> None:
    """Run one iteration: masters[i] computes and keeps the token of requests[i]; each holder of KV takes part."""
    members = set(masters).union(*[state.placement.holders(request.id) for request in requests])
    segments = list(map(state.decode_segment, requests, masters))
    state.run_batch(tuple(sorted(members)), segments)


def take_quota(context: dict[int, int], quotas: dict[int, int]) -> int:
    """Use up one place on the instance with most of the KV, among those that may take one more; returns it.

    context: tokens of the request on each holder. quotas: tokens that each instance may still take; lowered.
    """
    willing = [number for number in context if quotas.get(number, 0) > 0]
    willing = willing or [number for number, quota in quotas.items() if quota > 0]
    master = max(willing, key=lambda number: (context.get(number, 0), quotas[number], -number))
    quotas[master] -= 1
    return master


def decode_each(state: SchedulerState, held: Collection[int] = frozenset()) -> None:
    """Start an iteration on each instance for itself, but for those in `held`."""
    while True:
        groups, _ = form_groups(state, held)
        victim = choose_victim_inside(groups)
        if victim is None:
            break
        state.preempt(victim.id)
    for group in groups:
        requests = choose_requests(group)
        if not requests:
            continue  # it waits for slots to come back
        run_decode(state, requests, [group.instances[0].id] * len(requests))
