"""Decode groups: which ready requests must run together, and on which instances.

Requests that share an instance run in one batch; so the groups are the connected parts of "holds KV of".
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from longspan.core.cluster import Instance
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


def form_groups(
    state: SchedulerState, held: Collection[int] = frozenset()
) -> tuple[list[DecodeGroup], list[Instance]]:
    """Groups that can run now, by their oldest request, and idle instances with room that belong to none.

    A group with an instance that still decodes for others waits for it: its idle instances stay idle for that
    one iteration, or they would go out of step for ever. Requests that need an instance busy with a prefill
    or a migration are left out, so that the others go on.

    held: instances that shall not decode, as if they were busy with a prefill.
    """
    idle = {instance.id for instance in state.cluster.idle()}.difference(held)
    soon = {instance.id for instance in state.cluster.decoding()}
    candidates = find_candidates(state, idle, soon)
    leader = connect(len(state.cluster), candidates.values())
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


def find_candidates(state: SchedulerState, idle: set[int], soon: set[int]) -> dict[Request, tuple[int, ...]]:
    """Ready requests -> holders, where every holder is idle, or decodes and comes back soon."""
    available = idle | soon
    holders_of = state.placement.holders
    candidates: dict[Request, tuple[int, ...]] = {}
    for number in sorted(idle):
        for request in state.cluster[number].ready.values():
            if request not in candidates and request.status is RequestStatus.DECODING:
                holders = holders_of(request.id)
                if len(holders) == 1 or available.issuperset(holders):
                    candidates[request] = holders
    return candidates


def connect(num_instances: int, sets_of_holders: Iterable[tuple[int, ...]]) -> list[int]:
    """Instance -> the leader of its connected part, the one with the lowest number."""
    parts: list[int] = []  # disjoint sets of instances, as bits
    for holders in {holders for holders in sets_of_holders if len(holders) > 1}:
        joined = _bits(holders)
        if any(joined & part == joined for part in parts):
            continue
        apart = [part for part in parts if not part & joined]
        for part in parts:
            if part & joined:
                joined |= part
        parts = [*apart, joined]
    leader = list(range(num_instances))
    for part in parts:
        lead = (part & -part).bit_length() - 1
        for number in range(lead, part.bit_length()):
            if part >> number & 1:
                leader[number] = lead
    return leader


@lru_cache(maxsize=1 << 14)
def _bits(numbers: tuple[int, ...]) -> int:
    return sum(1 << number for number in numbers)


def relieve_shortage(groups: list[DecodeGroup], spare: list[Instance]) -> list[DecodeGroup]:
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


def choose_victim(state: SchedulerState, groups: Sequence[DecodeGroup]) -> Request | None:
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


def choose_victim_inside(groups: Sequence[DecodeGroup]) -> Request | None:
    """Whom to preempt when groups cannot help each other: the latest of one that cannot take a single step.

    A request that is alone there is computed again, wherever there is room for one token more.
    """
    for group in groups:
        if group.room == 0:
            return max(group.requests, key=lambda request: request.arrival_index)
    return None


def choose_requests(group: DecodeGroup) -> list[Request]:
    """All in turn if the batch is limited by its size; the oldest if it is limited by KV room."""
    if group.surplus < 0:
        return sorted(group.requests, key=lambda request: request.arrival_index)[: group.room]
    return sorted(group.requests, key=lambda request: request.ready_order)[: group.size]


def run_decode(state: SchedulerState, requests: Sequence[Request], masters: Sequence[int]) -> None:
    """One iteration: masters[i] computes and keeps the token of requests[i]; whoever holds KV takes part."""
    members = set(masters)
    for request in requests:
        members.update(state.placement.holders(request.id))
    pairs = zip(requests, masters, strict=True)
    segments = [state.decode_segment(request, master) for request, master in pairs]
    state.run_batch(tuple(sorted(members)), segments)


def take_quota(context: dict[int, int], quotas: dict[int, int]) -> int:
    """The instance with most of the request's KV, among those that may take one more.

    context: tokens of the request on each holder. quotas: tokens that each instance may still take; lowered.
    """
    willing = [number for number in context if quotas.get(number, 0) > 0]
    willing = willing or [number for number, quota in quotas.items() if quota > 0]
    master = max(willing, key=lambda number: (context.get(number, 0), quotas[number], -number))
    quotas[master] -= 1
    return master
