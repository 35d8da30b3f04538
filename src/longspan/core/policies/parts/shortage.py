"""What to do where decode groups lack slots: join what has some, or preempt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from operator import attrgetter

from longspan.core.books.cluster import Instance
from longspan.core.books.request import Request
from longspan.core.policies.parts.decode_groups import DecodeGroup
from longspan.core.state import SchedulerState

_ARRIVAL = attrgetter("arrival_index")


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
    """Choose which to preempt: the latest to arrive, if a group cannot take one step and no room is in sight.

    A group with room for some of its requests runs those, the oldest: perhaps one of them ends. A lone
    request waits for the other groups: if nothing else were alive, it would have room, since it was not refused.
    """
    stuck = [group for group in groups if group.room == 0]
    if not stuck:
        return None
    requests = [request for group in groups for request in group.requests]
    if len(requests) == 1:
        return None
    room_to_come = sum(instance.unreserved for instance in state.cluster.instances if not instance.is_idle)
    if room_to_come >= stuck[0].size:
        return None
    return max(requests, key=_ARRIVAL)


def choose_victim_inside(groups: Sequence[DecodeGroup]) -> Request | None:
    """Choose which to preempt when groups cannot help each other: the latest of one that cannot take a single step.

    A request that is alone there is computed again, wherever there is room for one token more. Where a batch is in a
    later stage of the group's instances, the group waits for it: slots may come back with it, or later requests.
    """
    for group in groups:
        if group.room == 0 and not group.is_awaited:
            return max(group.requests, key=_ARRIVAL)
    return None
