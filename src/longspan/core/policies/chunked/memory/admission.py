"""Admission: which waiting requests get their first chunk now, and where all their KV will go."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Set
from dataclasses import dataclass
from functools import cached_property

from longspan.core.actions import KVRange
from longspan.core.books.request import Request, RequestStatus
from longspan.core.policies.chunked.chunk_size import Chunks
from longspan.core.policies.chunked.memory.clearing import Clearing
from longspan.core.policies.chunked.memory.copying import Elsewhere, Kept
from longspan.core.policies.chunked.memory.kvp import plan_shards
from longspan.core.policies.chunked.memory.pool_shares import PoolShares, PoolUse
from longspan.core.policies.chunked.memory.recomputing import last_key
from longspan.core.policies.chunked.memory.returns import Returns
from longspan.core.policies.chunked.ranking import Candidate
from longspan.core.policies.chunked.teams.width import ALONE, Team, Width, plan_evenly
from longspan.core.prefixes.coming import Coming
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
    ahead: ids of the prompts that have begun, and are higher in rank than the next to be admitted.
    kept: the requests that wait for their prefixes.
    """

    def __init__(
        self, state: SchedulerState, chunks: Chunks, clearings: Mapping[str, Clearing], width: Width,
        shares: PoolShares, waits_for_prefix: bool, elsewhere: Elsewhere, lift: Callable[[Request], bool],
    ) -> None:  # fmt: skip
        """Begin without any. waits_for_prefix: see `ChunkedPrefill.Options`. lift: has a prompt go on if it can now."""
        self._elsewhere = elsewhere
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
        self.kept: list[Kept] = []
        self._num_passed_over = self._num_kept = 0
        self._has_looked = False
        self._waits_for_prefix = waits_for_prefix
        self._lift = lift
        self._returns = Returns(state, chunks.iteration)
        self._beginning = Coming(state.config.prefix_block)
        self.ahead: set[str] = set()
        self._full: set[int] = set()
        self._able_now = self.iteration.instances

    def are_open(self) -> bool:
        """Tell whether any waiting request may start: an instance has time for it, and none before it is kept back."""
        if self.blocked is not None or self._num_passed_over >= _MOST_PASSED_OVER:
            return False
        if self._num_kept >= 2 * _MOST_PASSED_OVER:
            return False
        return len(self.chunks.full) < len(self.iteration.instances)

    def near(self) -> Collection[int] | None:
        """Return where prompts must have their prefix to be looked at, once many have been whose prefix is elsewhere;
        None before."""
        return self._able() if self._num_kept >= _MOST_PASSED_OVER else None

    def admit(self, candidate: Candidate, limit: Callable[[int], float]) -> None:
        """Give it its first chunk if there is time, and set its room aside. limit: see `SpaceSharing.limit`."""
        request = candidate.request
        if request.id in self.clearings:
            return
        headroom, need = self.state.headroom(request), self.state.need(request)
        if not self.pool.admits(request, need):
            return
        if sum(self.rooms.values()) < need:
            self.blocked = candidate
            return
        if not request.prefix_keys:
            self._place(candidate, headroom, limit)
        elif self._had_better_wait(candidate, headroom):
            self._num_kept += 1
        elif self._take_over(candidate, headroom) and self._place(candidate, headroom, limit):
            self._beginning.note(request)
        else:
            self.state.disown(request)
            self._num_kept += 1

    def _place(self, candidate: Candidate, headroom: int, limit: Callable[[int], float]) -> bool:
        """Set room aside for what it lacks, and give it its first chunk if there is time; returns whether it did."""
        request = candidate.request
        team = self.width.choose(candidate, self.rooms)
        if team:
            team = tuple(sorted({*team, *self.state.placement.holders(request.id)}))
            admitted = self._admit_wide(request, team, headroom, limit)
            if admitted is not None:
                return admitted
        planned = self._plan(
            candidate, headroom, self.state.placement.holders(request.id), request.num_stored
        )
        first, begins = planned[0], False
        if first.instance in self.iteration and first.instance not in self.chunks.full:
            is_next, context = self.chunks.is_next(first.instance), self.state.placement.context(request.id)
            if self.chunks.add(request, first, context, is_next, limit(first.instance)):
                begins = True
                self.admitted.append(Admission(request, planned))
                for shard in planned:
                    self.pending[shard.instance] += self._work(shard)
            elif context and request.prefix_keys:
                self.chunks.full.add(first.instance)  # or every request with a prefix there would be tried
        self._set_aside(request, planned, headroom)
        return begins

    def _plan(self, candidate: Candidate, headroom: int, near: Collection[int], start: int) -> tuple[KVRange, ...]:
        """Plan for its tokens from `start` on, for which there is room."""
        request = candidate.request
        order = self._order(candidate, request.num_tokens - start + headroom, near)
        planned = plan_shards(
            request.num_tokens - start, headroom, self.rooms, order, self.predictor.shard_tokens, start
        )
        assert planned is not None, "there is room"
        return planned

    def _had_better_wait(self, candidate: Candidate, headroom: int) -> bool:
        """Tell whether it had better wait for more of its prefix than it could take over now; then set room aside.

        That is so where it saves more than it waits for these instances (`Returns`), and than the work takes of those
        before it in rank that wait for the same one: beyond that, it had better compute its prefix once more,
        elsewhere. It waits for who computes more of it; or for busy instances that have it, if all of it is on one, or
        if none above it in rank waits: then they come together (`prefix_to_come`).
        """
        state, request, able = self.state, candidate.request, self._able()
        is_first, self._has_looked = not self._has_looked, True
        held, coming = state.cached_on(request), self._coming(request)
        if coming is not None:
            other, there = coming
            near = [*state.placement.holders(other.id), *[planned.instance for planned in other.reserved]]
        elif not held.keys() <= able and (len(held) == 1 or is_first):
            there, near = sum(held.values()), list(held)
        else:
            return False
        there_s = self.predictor.whole_prefill(there)
        saved_s = there_s - self.predictor.whole_prefill(state.cached(request, able))
        queue_s = candidate.queue_s if coming is None else sum([kept.left_s for kept in self.kept if kept.home in near])
        wait_s = self._returns.wait(near, able, coming)
        key = last_key(request, there // state.config.prefix_block)
        if saved_s <= wait_s:
            return False
        if coming is None and (there_too := self._copy(request, key, held, min(queue_s, saved_s - wait_s))):
            near = there_too
        elif saved_s <= wait_s + queue_s and self._elsewhere.recomputing.may_begin(request, key):
            return False
        if coming is not None and not self._goes_on(coming[0]):
            return False
        if near:  # who computes it has begun before
            home = max(near, key=lambda number: held.get(number, 0))
            left_s = self.predictor.whole_prefill(request.num_tokens) - there_s
            self.kept.append(Kept(request, home, there_s, left_s))
        start = request.num_tokens + headroom - state.need(request)
        self._set_aside(request, self._plan(candidate, headroom, near, start), headroom)
        return True

    def _copy(self, request: Request, key: bytes, held: Mapping[int, int], most_s: float) -> list[int]:
        """Return where it waits for a copy of its prefix, which takes less than so many seconds."""
        able = [number for number in self._able() if self.rooms[number] >= self.state.need(request, [number])]
        able.sort(key=lambda number: (self.pending[number], number))
        copies, migration_s = self._elsewhere.copies, self.predictor.model.migration
        return copies.choose(self.state, request, key, held, able, most_s, migration_s)

    def _coming(self, request: Request) -> tuple[Request, int] | None:
        """Return who computes more of its prefix, and how much there will be."""
        if not self._waits_for_prefix:
            return None
        return self._beginning.find(request) or self.state.coming(request)

    def _goes_on(self, other: Request) -> bool:
        """Tell whether a prompt that has begun goes on before who waits for it; one that can now does so in its place,
        or it would wait for one that is lower in rank."""
        if other.in_flight or other.id in self.ahead or other.status is RequestStatus.WAITING:
            return True
        if other.status is RequestStatus.REPAIRING:
            return other.num_output_tokens > 0  # streams are repaired before all else
        return self._lift(other)

    def _take_over(self, candidate: Candidate, headroom: int) -> bool:
        """Have it take over what the instances have of its prefix; returns whether there is room for the rest."""
        request, cluster, able = candidate.request, self.state.cluster, self._able()
        before = {number: cluster[number].used for number in able}
        self.state.adopt(request, able, self.rooms)
        for number in able:
            self.rooms[number] -= cluster[number].used - before[number]
        if sum(self.rooms.values()) >= request.slots_to_take + headroom:
            return True
        self.blocked = candidate  # others use what it would take over elsewhere
        return False

    def _able(self) -> Set[int]:
        """Return the instances that have time for a first chunk."""
        if len(self._full) != len(self.chunks.full):
            self._full = set(self.chunks.full)
            self._able_now = self.iteration.instances - self._full
        return self._able_now

    def _admit_wide(
        self, request: Request, team: Team, headroom: int, limit: Callable[[int], float]
    ) -> bool | None:
        """Give it a first chunk that the team computes, if there is room, and time; returns whether it got one, None if
        there is no room."""
        begins = False
        planned = plan_evenly(request.slots_to_take, headroom, self.rooms, team, request.num_stored)
        if planned is None:
            return None
        if self.iteration.covers(team) and self.chunks.full.isdisjoint(team):
            is_next = self.chunks.is_next(*team)
            if self.chunks.add_wide(request, team, is_next, min(map(limit, team))):
                self.admitted.append(Admission(request, planned, team))
                begins = True
            else:
                self._num_passed_over += 1
        self._set_aside(request, planned, headroom)
        return begins

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
        decodes = [pair for part in self.iteration.parts() for pair in part.decodes]
        for master, many in Counter([master for request, master in decodes if not request.reserved]).items():
            rooms[master] = max(0, rooms[master] - many)
        for clearing in self.clearings.values():
            rooms[clearing.source] = rooms[clearing.target] = 0
        return rooms

    @cached_property
    def pending(self) -> dict[int, float]:
        """Predicted seconds of prefill that each instance has still to do, of requests that hold KV."""
        pending: dict[int, float] = defaultdict(float)
        for request in self.state.with_reservation():
            for planned in request.reserved:
                pending[planned.instance] += self._work(planned)
        return pending

    def _work(self, planned: KVRange) -> float:
        return self.predictor.whole_prefill(planned.end) - self.predictor.whole_prefill(planned.start)

    def _order(self, candidate: Candidate, need: int, near: Collection[int]) -> list[int]:
        """Where its KV goes first: to instances that are near, which have its prefix. Else a short one goes to one
        instance: with least pending work, of those that can start. A long one begins there too. A short one that fits
        nowhere whole is spread over as few as possible."""
        able, rooms, pending = self._able(), self.rooms, self.pending

        def by_work(number: int) -> tuple[float, ...]:
            return (number not in near, number not in able, pending[number])

        def by_loss(number: int) -> tuple[float, ...]:
            return (self.state.least_cached(number, need), -rooms[number], number)

        with_room = [number for number, room in rooms.items() if room > 0]
        if need > self.predictor.shard_tokens:
            return sorted(with_room, key=lambda number: (by_work(number), by_loss(number)))
        whole = {number: by_work(number) for number in with_room if rooms[number] >= need}
        if whole:
            least = min(whole.values())
            alike = [number for number, work in whole.items() if work == least]
            return [min(alike, key=by_loss)] if len(alike) > 1 else alike
        if self.scattered is None:
            self.scattered = candidate
        return sorted(with_room, key=lambda n: (n not in near, n not in able, -rooms[n], n))
