"""Decode groups: which ready requests must run together, and on which instances.

Requests that share an instance run in one batch; so the groups are the connected parts of "holds KV of".
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence, Set
from functools import lru_cache
from operator import attrgetter

from longspan.core.cluster import Instance
from longspan.core.request import Request, RequestStatus
from longspan.core.state import SchedulerState

_ARRIVAL = attrgetter("arrival_index")


class DecodeGroup:
    """Ready requests and the idle instances that hold them, or were added.

    room: free slots of its instances. It stays as it is until something runs on them.
    """

    __slots__ = ("added", "instances", "max_requests", "requests", "room")

    def __init__(self, requests: list[Request], instances: list[Instance], max_requests: int) -> None:
        self.requests = requests
        self.instances = instances
        self.max_requests = max_requests
        self.added: list[Instance] = []
        self.room = sum([instance.free for instance in instances])

    @property
    def size(self) -> int:
        """Requests in its next batch."""
        return min(len(self.requests), self.max_requests)

    @property
    def surplus(self) -> int:
        """Slots left after its next iteration; below zero if it lacks some."""
        return self.room - self.size

    def add(self, instance: Instance) -> None:
        self.instances.append(instance)
        self.added.append(instance)
        self.room += instance.free

    def absorb(self, other: DecodeGroup) -> None:
        self.requests += other.requests
        self.instances += other.instances
        self.added += other.added
        self.room += other.room


def form_groups(
    state: SchedulerState, held: Collection[int] = frozenset()
) -> tuple[list[DecodeGroup], Iterator[Instance]]:
    """Groups that can run now, by their oldest request, and idle instances with room that belong to none, the roomiest
    first. These are looked for when the first is asked for.

    A group with an instance that still decodes for others waits for it: its idle instances stay idle for that
    one iteration, or they would go out of step for ever. Requests that need an instance busy with a prefill
    or a migration are left out, so that the others go on.

    held: instances that shall not decode, as if they were busy with a prefill.
    """
    cluster = state.cluster
    resting, unavailable = cluster.resting(), cluster.engaged
    if held:
        resting = [instance for instance in resting if instance.id not in held]
        unavailable = unavailable | (cluster.idle_numbers & set(held))
    if not resting:
        return [], iter(())
    candidates = find_candidates(state, resting, unavailable)
    leader = connect(candidates.values())
    members: dict[int, list[Request]] = {}
    numbers: dict[int, set[int]] = {}
    for request, holders in candidates.items():
        lead = leader[holders[0]]
        if lead not in members:
            members[lead], numbers[lead] = [], set()
        members[lead].append(request)
        numbers[lead].update(holders)
    groups = []
    for lead, requests in members.items():
        instances = [cluster[number] for number in sorted(numbers[lead])]
        if all([instance.is_idle for instance in instances]):
            groups.append(DecodeGroup(requests, instances, state.config.max_batch_requests))
    if len(groups) > 1:
        groups.sort(key=lambda group: min(map(_ARRIVAL, group.requests)))
    return groups, _spare(state, [held, *numbers.values()])


def _spare(state: SchedulerState, taken: Iterable[Collection[int]]) -> Iterator[Instance]:
    numbers = set().union(*taken)
    with_room = [instance for instance in state.cluster.idle() if instance.free > 0 and instance.id not in numbers]
    yield from sorted(with_room, key=lambda instance: -instance.free)


def find_candidates(
    state: SchedulerState, resting: Iterable[Instance], unavailable: Set[int]
) -> dict[Request, tuple[int, ...]]:
    """Decoding requests ready on these instances -> holders, all of which are available."""
    holders_of = state.placement.holders
    candidates: dict[Request, tuple[int, ...]] = {}
    for instance in resting:
        for request in instance.ready.values():
            if request.status is RequestStatus.DECODING and request not in candidates:
                holders = holders_of(request.id)
                if len(holders) == 1 or unavailable.isdisjoint(holders):
                    candidates[request] = holders
    return candidates


class Leaders(dict[int, int]):
    """Instance -> the leader of its connected part, the one with the lowest number: itself unless it is joined."""

    def __missing__(self, number: int) -> int:
        return number


def connect(sets_of_holders: Iterable[tuple[int, ...]]) -> Leaders:
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
    leader = Leaders()
    for part in parts:
        lead = (part & -part).bit_length() - 1
        for number in range(lead, part.bit_length()):
            if part >> number & 1:
                leader[number] = lead
    return leader


@lru_cache(maxsize=1 << 14)
def _bits(numbers: tuple[int, ...]) -> int:
    return sum(1 << number for number in numbers)


def relieve_shortage(groups: list[DecodeGroup], spare: Iterator[Instance]) -> list[DecodeGroup]:
    """Scale up for memory, the oldest group first: take a spare instance, or join a group with surplus."""
    left = list(groups)
    for group in groups:
        while group.surplus < 0 and group in left:
            if extra := next(spare, None):
                group.add(extra)
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
    if not stuck:
        return None
    requests = [request for group in groups for request in group.requests]
    if len(requests) == 1:
        return None
    room_to_come = sum(instance.free for instance in state.cluster.instances if not instance.is_idle)
    if room_to_come >= stuck[0].size:
        return None
    return max(requests, key=_ARRIVAL)


def choose_victim_inside(groups: Sequence[DecodeGroup]) -> Request | None:
    """Whom to preempt when groups cannot help each other: the latest of one that cannot take a single step.

    A request that is alone there is computed again, wherever there is room for one token more.
    """
    for group in groups:
        if group.room == 0:
            return max(group.requests, key=_ARRIVAL)
    return None


def choose_requests(group: DecodeGroup) -> list[Request]:
    """All in turn if the batch is limited by its size; the oldest if it is limited by KV room."""
    if group.surplus < 0:
        return sorted(group.requests, key=_ARRIVAL)[: group.room]
    return sorted(group.requests, key=attrgetter("ready_order"))[: group.size]


def run_decode(state: SchedulerState, requests: Sequence[Request], masters: Sequence[int]) -> None:
    """One iteration: masters[i] computes and keeps the token of requests[i]; whoever holds KV takes part."""
    members = set(masters).union(*[state.placement.holders(request.id) for request in requests])
    segments = list(map(state.decode_segment, requests, masters))
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
