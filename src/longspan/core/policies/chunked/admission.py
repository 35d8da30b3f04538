"""Admission: which waiting requests get their first chunk now, and where all their KV will go."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

from longspan.core.actions import KVRange
from longspan.core.books.request import Request
from longspan.core.policies.chunked.chunk_size import Chunks
from longspan.core.policies.chunked.memory.clearing import Clearing
from longspan.core.policies.chunked.memory.kvp import plan_shards
from longspan.core.policies.chunked.memory.pool_shares import PoolShares, PoolUse
from longspan.core.policies.chunked.ranking import Candidate
from longspan.core.policies.chunked.teams.width import ALONE, Team, Width, plan_evenly
from longspan.core.state import SchedulerState

_MOST_PASSED_OVER = 8
"""Prompts whose teams have no time for them, before no more are looked at: the queue may be long."""


@dataclass(frozen=True, slots=True)
class Admission:
    """A waiting request gets its first chunk. planned: where all its tokens will go. team: see `Width`."""

    request: Request
    planned: tuple[KVRange, ...]
    team: Team = ALONE


class Admissions:
    """The admissions of one iteration.

    What a waiting request will take is set aside, for this decision, also where it cannot start yet: those below it in
    rank get what is left.

    admitted: the requests that got a chunk.
    blocked: the highest in rank that memory keeps from ever starting now: all instances together lack room. No request
        below it is admitted, or it would starve.
    scattered: the highest in rank that no instance has room for, but several together.
    """

    def __init__(
        self, state: SchedulerState, chunks: Chunks, clearings: Mapping[str, Clearing], width: Width,
        shares: PoolShares,
    ) -> None:  # fmt: skip
        self.state = state
        self.pool = PoolUse(state, shares)
        self.width = width
        self.chunks = chunks
        self.iteration = chunks.iteration
        self.predictor = chunks.iteration.predictor
        self.clearings = clearings
        self.admitted: list[Admission] = []
        self.blocked: Candidate | None = None
        self.scattered: Candidate | None = None
        self._num_passed_over = 0

    def are_open(self) -> bool:
        """Tell whether any waiting request may start: an instance has time for it, and none before it is kept back."""
        if self.blocked is not None or self._num_passed_over >= _MOST_PASSED_OVER:
            return False
        return len(self.chunks.full) < len(self.iteration.instances)

    def admit(self, candidate: Candidate, limit: Callable[[int], float]) -> None:
        """Give it its first chunk if there is time, and set its room aside. limit: see `SpaceSharing.limit`."""
        request = candidate.request
        if request.id in self.clearings:
            return
        headroom = self.state.headroom(request)
        need = request.slots_to_take + headroom
        if not self.pool.admits(request, need):
            return
        if sum(self.rooms.values()) < need:
            self.blocked = candidate
            return
        team = self.width.choose(candidate, self.rooms)
        if team and self._admit_wide(request, team, headroom, limit):
            return
        planned = plan_shards(
            request.slots_to_take, headroom, self.rooms, self._order(candidate, need), self.predictor.shard_tokens
        )
        assert planned is not None, "there is room"
        first = planned[0]
        if first.instance in self.iteration and first.instance not in self.chunks.full:
            is_next = self.chunks.is_next(first.instance)
            if self.chunks.add(request, first, (), is_next, limit(first.instance)):
                self.admitted.append(Admission(request, planned))
                for shard in planned:
                    self.pending[shard.instance] += self._work(shard)
        self._set_aside(request, planned, headroom)

    def _admit_wide(
        self, request: Request, team: Team, headroom: int, limit: Callable[[int], float]
    ) -> bool:
        """Give it a first chunk that the team computes, if there is room, and time; returns whether there is room."""
        planned = plan_evenly(request.slots_to_take, headroom, self.rooms, team)
        if planned is None:
            return False
        if self.iteration.covers(team) and self.chunks.full.isdisjoint(team):
            is_next = self.chunks.is_next(*team)
            if self.chunks.add_wide(request, team, is_next, min(map(limit, team))):
                self.admitted.append(Admission(request, planned, team))
            else:
                self._num_passed_over += 1
        self._set_aside(request, planned, headroom)
        return True

    def _set_aside(self, request: Request, planned: tuple[KVRange, ...], headroom: int) -> None:
        self.pool.take(request, request.slots_to_take + headroom)
        for shard in planned:
            self.rooms[shard.instance] -= shard.length
        last = planned[-1].instance
        self.rooms[last] = max(0, self.rooms[last] - headroom)

    @cached_property
    def rooms(self) -> dict[int, int]:
        """Slots of each instance for requests that wait, beside this iteration's decodes."""
        rooms = {instance.id: max(0, instance.room) for instance in self.state.cluster.instances}
        for part in self.iteration.parts():
            for request, master in part.decodes:
                rooms[master] = max(0, rooms[master] - (not request.reserved))
        for clearing in self.clearings.values():
            rooms[clearing.source] = rooms[clearing.target] = 0
        return rooms

    @cached_property
    def pending(self) -> dict[int, float]:
        """Predicted seconds of prefill that each instance has still to do, of requests that hold KV."""
        pending: dict[int, float] = defaultdict(float)
        for request in self.state.with_kv():
            for planned in request.reserved:
                pending[planned.instance] += self._work(planned)
        return pending

    def _work(self, planned: KVRange) -> float:
        return self.predictor.prefill(planned.end) - self.predictor.prefill(planned.start)

    def _order(self, candidate: Candidate, need: int) -> list[int]:
        """Where its KV goes first. A short one goes to one instance: with least pending work, of those that can start.

        A long one begins there too. A short one that fits nowhere whole is spread over as few as possible.
        """

        def cannot_start(number: int) -> bool:
            return number not in self.iteration or number in self.chunks.full

        def by_work(number: int) -> tuple[float, ...]:
            return (cannot_start(number), self.pending[number], -self.rooms[number], number)

        with_room = [number for number, room in self.rooms.items() if room > 0]
        if need > self.predictor.shard_tokens:
            return sorted(with_room, key=by_work)
        whole = [number for number in with_room if self.rooms[number] >= need]
        if whole:
            return [min(whole, key=by_work)]
        if self.scattered is None:
            self.scattered = candidate
        return sorted(with_room, key=lambda n: (cannot_start(n), -self.rooms[n], n))
