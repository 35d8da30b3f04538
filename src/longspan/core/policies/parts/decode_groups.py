"""Decode groups: which ready requests must run together, and on which instances.

Requests that share an instance run in one batch; so the groups are the connected parts of "holds KV of".
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Set
from operator import attrgetter

from longspan.core.books.cluster import Instance
from longspan.core.books.request import Request, RequestStatus
from longspan.core.policies.parts.connected import connect
from longspan.core.state import SchedulerState

_ARRIVAL = attrgetter("arrival_index")


class DecodeGroup:
    """Ready requests and the idle instances that hold them, or were added.

    room: slots of its instances that any request may take. It stays as it is until something runs on them.
    """

    __slots__ = ("added", "instances", "max_requests", "requests", "room")

    def __init__(self, requests: list[Request], instances: list[Instance], max_requests: int) -> None:
        self.requests = requests
        self.instances = instances
        self.max_requests = max_requests
        self.added: list[Instance] = []
        self.room = sum([instance.unreserved for instance in instances])

    @property
    def size(self) -> int:
        """Requests in its next batch."""
        return min(len(self.requests), self.max_requests)

    @property
    def is_awaited(self) -> bool:
        """Whether a batch is in a later pipeline stage of some of its instances."""
        return any([instance.later for instance in self.instances])

    @property
    def surplus(self) -> int:
        """Slots left after its next iteration; below zero if it lacks some."""
        return self.room - self.size

    def add(self, instance: Instance) -> None:
        self.instances.append(instance)
        self.added.append(instance)
        self.room += instance.unreserved

    def absorb(self, other: DecodeGroup) -> None:
        self.requests += other.requests
        self.instances += other.instances
        self.added += other.added
        self.room += other.room


def form_groups(
    state: SchedulerState, held: Collection[int] = frozenset()
) -> tuple[list[DecodeGroup], Iterator[Instance]]:
    """Return the groups that can run now, by their oldest request, and idle instances with room that belong to none,
    the roomiest first. These are looked for when the first is asked for.

    A group with an instance that still decodes for another group waits for it: its idle instances stay idle for that
    one iteration, or they would go out of step for ever. Requests that need an instance busy with a prefill
    or a migration are left out, so that the rest goes on.

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
    others = [instance for instance in state.cluster.idle() if instance.id not in numbers]
    with_room = [instance for instance in others if instance.unreserved > 0]
    yield from sorted(with_room, key=lambda instance: -instance.unreserved)


def find_candidates(
    state: SchedulerState, resting: Iterable[Instance], unavailable: Set[int]
) -> dict[Request, tuple[int, ...]]:
    """Return decoding requests ready on these instances -> holders, all of which are available."""
    holders_of = state.placement.holders
    candidates: dict[Request, tuple[int, ...]] = {}
    for instance in resting:
        for request in instance.ready.values():
            if request.status is RequestStatus.DECODING and request not in candidates:
                holders = holders_of(request.id)
                if len(holders) == 1 or unavailable.isdisjoint(holders):
                    candidates[request] = holders
    return candidates
