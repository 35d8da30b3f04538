"""Decode: which ready requests run together, on which instances, and which instance is which request's master.

A group grows when its KV room or its masters' capacity is short. It shrinks by itself: an instance that neither
holds nor computes anything for the batch is no longer in it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from longspan.core.books.cluster import Instance
from longspan.core.books.request import Request
from longspan.core.policies.parts.decode_batch import choose_requests, run_decode, take_quota
from longspan.core.policies.parts.decode_groups import DecodeGroup, form_groups
from longspan.core.policies.parts.sharing import share_evenly
from longspan.core.policies.parts.shortage import choose_victim, relieve_shortage
from longspan.core.state import SchedulerState


def start_decodes(state: SchedulerState) -> None:
    """Start an iteration for every group that has room, making room by preemption if nothing else can."""
    while True:
        groups, spare = form_groups(state)
        groups = relieve_shortage(groups, spare)
        _relieve_crowding(state, groups, spare)
        victim = choose_victim(state, groups)
        if victim is None:
            break
        state.preempt(victim.id)
    for group in groups:
        requests = choose_requests(group)
        if requests:
            run_decode(state, requests, _choose_masters(state, requests, group.instances))


def _relieve_crowding(state: SchedulerState, groups: list[DecodeGroup], spare: Iterator[Instance]) -> None:
    """Scale up for compute: a spare instance as another master while each one has too many requests."""
    for group in groups:
        while group.size > state.config.max_requests_per_master * len(group.instances) and (
            extra := next(spare, None)
        ):
            group.add(extra)


def _choose_masters(state: SchedulerState, requests: Sequence[Request], instances: Sequence[Instance]) -> list[int]:
    """One master for each request: a single one for all while that is not too many, else spread evenly."""
    contexts = [dict(state.placement.context(request.id)) for request in requests]
    if len(requests) <= state.config.max_requests_per_master:
        held: Counter[int] = Counter()
        for context in contexts:
            held.update(context)
        able = [instance.id for instance in instances if instance.unreserved >= len(requests)]
        if able:
            return [max(able, key=lambda number: (held[number], -number))] * len(requests)
    shares = share_evenly(len(requests), [instance.unreserved for instance in instances])
    quotas = {instance.id: share for instance, share in zip(instances, shares, strict=True)}
    return [take_quota(context, quotas) for context in contexts]
