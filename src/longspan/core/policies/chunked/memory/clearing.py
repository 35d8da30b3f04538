"""Clearing an instance: a half-done prefill's shard moves aside, so that a waiting request finds room in one piece."""

from __future__ import annotations

from dataclasses import dataclass

from msgspec.structs import replace

from longspan.core.books.request import Request, RequestStatus
from longspan.core.state import SchedulerState


@dataclass(frozen=True, slots=True)
class Clearing:
    """A half-done prefill's shard goes from `source` to `target`, so that a waiting request has `source` whole.

    Decided when it is found; done as soon as both instances are idle, for which each waits.
    """

    source: int
    target: int
    victim_id: str


class Clearings:
    """The clearings under way, by waiting request: until the shard has moved, no other request is placed on their
    instances, and the request itself nowhere else."""

    def __init__(self) -> None:
        self._clearings: dict[str, Clearing] = {}

    def begin(self, request: Request, clearing: Clearing) -> None:
        self._clearings[request.id] = clearing

    def advance(self, state: SchedulerState) -> dict[str, Clearing]:
        """Move what can move now; returns those that go on."""
        if self._clearings:
            waiting = {request.id for request in state.waiting}
            alive = {request.id: request for request in state.with_kv()}
            self._clearings = {
                request_id: clearing
                for request_id, clearing in self._clearings.items()
                if request_id in waiting
                and clearing.victim_id in alive
                and clearing.source in state.cluster
                and clearing.target in state.cluster
                and _goes_on(state, clearing, alive[clearing.victim_id])
            }
        return self._clearings


def _goes_on(state: SchedulerState, clearing: Clearing, victim: Request) -> bool:
    """It moves now, or is on its way, or waits for the instances. Not if it has moved, or there is no room any more."""
    if victim.status is RequestStatus.MIGRATING:
        return True
    source, target = state.cluster[clearing.source], state.cluster[clearing.target]
    if victim.status is not RequestStatus.PREFILLING or target.unreserved < shard_slots(state, victim, source.id):
        return False
    holds_kv = source.id in state.placement.holders(victim.id)
    if holds_kv and not (source.is_idle and target.is_idle):
        return True
    if not victim.is_ready or not shard_slots(state, victim, source.id):
        return False
    move_shard(state, victim, source.id, target.id)
    return holds_kv


def move_shard(state: SchedulerState, victim: Request, source: int, target: int) -> None:
    """Move what a ready request has on `source`, and what it has reserved there, to `target`."""
    state.reserve(
        victim.id, [replace(r, instance=target) if r.instance == source else r for r in victim.reserved]
    )
    ranges = state.placement.held(victim.id, source)
    if ranges:
        state.migrate(victim.id, source, target, ranges)


def shard_slots(state: SchedulerState, request: Request, instance: int) -> int:
    """Return the slots that a request has on an instance, or counts on there."""
    reserved = sum(planned.length for planned in request.reserved if planned.instance == instance)
    promised = request.promised if request.home == instance else 0
    return dict(state.placement.context(request.id)).get(instance, 0) + reserved + promised
