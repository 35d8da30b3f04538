"""Decode: which ready requests run together, on which instances, and who is whose master.

Requests that share an instance run in one batch; so the groups are the connected parts of "holds KV of". A
group grows when its KV room or its masters' capacity is short. It shrinks by itself: an instance that neither
holds nor computes anything for the batch is no longer in it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from longspan.core.cluster import Instance
from longspan.core.policies.elastic_fcfs.sharing import share_evenly
from longspan.core.request import Request, RequestStatus
from longspan.core.state import SchedulerState


@dataclass(slots=True, eq=False)
class DecodeGroup:
    """Ready requests and the idle instances that hold them, or were added."""

    requests: list[Request]
    instances: list[Instance]
    max_requests: int

    @property
    def size(self) -> int:
        """Requests in its next batch."""
        return min(len(self.requests), self.max_requests)

    @property
    def room(self) -> int:
        return sum(instance.free for instance in self.instances)

    @property
    def surplus(self) -> int:
        """Slots left after its next iteration; below zero if it lacks some."""
        return self.room - self.size

    def absorb(self, other: DecodeGroup) -> None:
        self.requests += other.requests
        self.instances += other.instances


def start_decodes(state: SchedulerState) -> None:
    """One iteration for every group that has room, making room by preemption if nothing else can."""
    while True:
        groups, spare = _form_groups(state)
        groups = _relieve_shortage(groups, spare)
        _relieve_crowding(state, groups, spare)
        victim = _choose_victim(state, groups)
        if victim is None:
            break
        state.preempt(victim.id)
    for group in groups:
        _run(state, group)


def _form_groups(state: SchedulerState) -> tuple[list[DecodeGroup], list[Instance]]:
    """Groups that can run now, by their oldest request, and idle instances with room that belong to none.

    A group with an instance that still decodes for others waits for it: its idle instances stay idle for that
    one iteration, or they would go out of step for ever. Requests that need an instance busy with a prefill
    or a migration are left out, so that the others go on.
    """
    idle = {instance.id for instance in state.cluster.idle()}
    soon = {instance.id for instance in state.cluster.decoding()}
    candidates = _candidates(state, idle, soon)
    leader = _connect(len(state.cluster), candidates.values())
    busy = {leader[number] for number in soon}
    members: dict[int, list[Request]] = {}
    occupied: set[int] = set()
    for request, holders in candidates.items():
        members.setdefault(leader[holders[0]], []).append(request)
        occupied.update(holders)
    limit = state.config.max_batch_requests
    groups = [
        DecodeGroup(requests, [state.cluster[n] for n in sorted(occupied) if leader[n] == lead], limit)
        for lead, requests in members.items()
        if lead not in busy
    ]
    groups.sort(key=lambda group: min(request.arrival_index for request in group.requests))
    spare = [state.cluster[n] for n in sorted(idle - occupied) if state.cluster[n].free > 0]
    return groups, sorted(spare, key=lambda instance: -instance.free)


def _candidates(state: SchedulerState, idle: set[int], soon: set[int]) -> dict[Request, tuple[int, ...]]:
    """Ready requests -> holders, where every holder is idle, or decodes and comes back soon."""
    candidates: dict[Request, tuple[int, ...]] = {}
    for number in sorted(idle):
        for request in state.cluster[number].ready.values():
            if request not in candidates and request.status is RequestStatus.DECODING:
                holders = state.placement.holders(request.id)
                if all(holder in idle or holder in soon for holder in holders):
                    candidates[request] = holders
    return candidates


def _connect(num_instances: int, sets_of_holders: Collection[tuple[int, ...]]) -> list[int]:
    """Instance -> the leader of its connected part (union-find; parts are tiny)."""
    leader = list(range(num_instances))
    for holders in {holders for holders in sets_of_holders if len(holders) > 1}:
        joined = {leader[holder] for holder in holders}
        lead = min(joined)
        leader = [lead if mine in joined else mine for mine in leader]
    return leader


def _relieve_shortage(groups: list[DecodeGroup], spare: list[Instance]) -> list[DecodeGroup]:
    """Scale up for memory, the oldest group first: take a spare instance, or join a group with surplus."""
    left = list(groups)
    for group in groups:
        while group in left and group.surplus < 0:
            if spare:
                group.instances.append(spare.pop(0))
                continue
            others = [other for other in left if other is not group and other.surplus > 0]
            if not others:
                break
            donor = max(others, key=lambda other: other.surplus)
            group.absorb(donor)
            left.remove(donor)
    return left


def _relieve_crowding(state: SchedulerState, groups: list[DecodeGroup], spare: list[Instance]) -> None:
    """Scale up for compute: a spare instance as another master while each one has too many requests."""
    for group in groups:
        while spare and group.size > state.config.max_requests_per_master * len(group.instances):
            group.instances.append(spare.pop(0))


def _choose_victim(state: SchedulerState, groups: Sequence[DecodeGroup]) -> Request | None:
    """Whom to preempt: the latest to arrive, if a group cannot take a single step and no room is in sight.

    A group with room for some of its requests runs those, the oldest: perhaps one of them ends. A lone
    request waits for the others: if nothing else were alive, it would have room, since it was not refused.
    """
    stuck = [group for group in groups if group.room == 0]
    requests = [request for group in groups for request in group.requests]
    if not stuck or len(requests) == 1:
        return None
    room_to_come = sum(instance.free for instance in state.cluster.instances if not instance.is_idle)
    if room_to_come >= stuck[0].size:
        return None
    return max(requests, key=lambda request: request.arrival_index)


def _run(state: SchedulerState, group: DecodeGroup) -> None:
    requests = _choose_requests(group)
    if not requests:
        return
    masters = _choose_masters(state, requests, group.instances)
    members = set(masters)
    for request in requests:
        members.update(state.placement.holders(request.id))
    pairs = zip(requests, masters, strict=True)
    segments = [state.decode_segment(request, master) for request, master in pairs]
    state.run_batch(tuple(sorted(members)), segments)


def _choose_requests(group: DecodeGroup) -> list[Request]:
    """All in turn if the batch is limited by its size; the oldest if it is limited by KV room."""
    if group.surplus < 0:
        return sorted(group.requests, key=lambda request: request.arrival_index)[: group.room]
    return sorted(group.requests, key=lambda request: request.ready_order)[: group.size]


def _choose_masters(state: SchedulerState, requests: Sequence[Request], instances: Sequence[Instance]) -> list[int]:
    """One master for each request: a single one for all while that is not too many, else spread evenly."""
    contexts = [dict(state.placement.context(request.id)) for request in requests]
    if len(requests) <= state.config.max_requests_per_master:
        held: Counter[int] = Counter()
        for context in contexts:
            held.update(context)
        able = [instance.id for instance in instances if instance.free >= len(requests)]
        if able:
            return [max(able, key=lambda number: (held[number], -number))] * len(requests)
    shares = share_evenly(len(requests), [instance.free for instance in instances])
    quotas = {instance.id: share for instance, share in zip(instances, shares, strict=True)}
    return [_take_quota(context, quotas) for context in contexts]


def _take_quota(context: dict[int, int], quotas: dict[int, int]) -> int:
    """The instance with most of the request's KV, among those that may take one more."""
    willing = [number for number, quota in quotas.items() if quota > 0]
    master = max(willing, key=lambda number: (context.get(number, 0), quotas[number], -number))
    quotas[master] -= 1
    return master
