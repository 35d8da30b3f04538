"""Chunks: who prefills in the next iteration, where, and how much at a time.

In order of rank each request gets the largest chunk that its part's target still allows (the paper's algorithms 1 and
2): a large one early in a prompt, a small one late, when every token attends to much.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from longspan.core.actions import KVRange
from longspan.core.books.request import Request
from longspan.core.policies.medha.clearing import Clearing
from longspan.core.policies.medha.iteration import Context, Iteration
from longspan.core.policies.medha.kvp import plan_shards, span
from longspan.core.policies.medha.ranking import Candidate, Ranking
from longspan.core.state import SchedulerState


@dataclass(frozen=True, slots=True)
class Admission:
    """A waiting request gets its first chunk. planned: where all its tokens will go."""

    request: Request
    planned: tuple[KVRange, ...]


@dataclass(frozen=True, slots=True)
class _Deferred:
    """A long prompt that gets its chunk after the short ones that share its iteration."""

    candidate: Candidate
    is_next: bool


class Packer:
    """Fills one iteration, which has its decodes already.

    admissions: waiting requests that got a chunk.
    blocked: the highest in rank that memory keeps from ever starting now: all instances together lack room. Nobody
        below it is admitted, or it would starve.
    scattered: the highest in rank that no instance has room for, but several together.

    What a waiting request will take is set aside, for this decision, also where it cannot start yet: those below it in
    rank get what is left.

    max_share: of an iteration, for short prompts beside a long one; 0 shares none.
    clearings: by waiting request, see `Clearings`.
    """

    def __init__(
        self, state: SchedulerState, iteration: Iteration, max_share: float, clearings: Mapping[str, Clearing]
    ) -> None:
        self.state = state
        self.iteration = iteration
        self.predictor = iteration.predictor
        self.max_share = max_share
        self.clearings = clearings
        self.admissions: list[Admission] = []
        self.blocked: Candidate | None = None
        self.scattered: Candidate | None = None
        self._full: set[int] = set()
        self._served: set[int] = set()
        self._with_long: set[int] = set()
        self._limits: dict[int, float] = {}
        self._deferred: list[_Deferred] = []

    def pack(self, ranking: Ranking) -> None:
        waiting = ranking.waiting()
        first = next(waiting, None)
        for candidate in (*ranking.ready, None):
            while first is not None and (candidate is None or first.key < candidate.key) and self._admits():
                self._admit(first)
                first = next(waiting, None)
            if candidate is not None:
                self._go_on(candidate)
        for late in self._deferred:
            request = late.candidate.request
            context = self.state.placement.context(request.id)
            self._add_chunk(request, request.reserved[0], context, late.is_next, math.inf)

    def _admits(self) -> bool:
        """Whether any waiting request may start: some instance has time for it, and nobody before it is kept back."""
        return self.blocked is None and len(self._full) < len(self.iteration.instances)

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

    # requests with KV

    def _go_on(self, candidate: Candidate) -> None:
        request = candidate.request
        instances = span(self.state, request)
        if not self.iteration.covers(instances):
            return
        planned = request.reserved[0]
        context = self.state.placement.context(request.id)
        is_next = self._is_next(planned.instance)
        limit = min([self._limits.get(number, math.inf) for number in instances]) if self._limits else math.inf
        if self.max_share and self.predictor.is_attention_bound(max(tokens for _, tokens in context)):
            if not self._with_long.isdisjoint(instances):
                return
            self._with_long.update(instances)
            if self._shares(candidate, planned, context):
                self._deferred.append(_Deferred(candidate, is_next))
                return
        self._add_chunk(request, planned, context, is_next, limit)

    def _shares(self, candidate: Candidate, planned: KVRange, context: Context) -> bool:
        """Space sharing: a long prompt with slack to spare leaves a part of its time to short ones below it in rank.

        It keeps (1 - rho) of the target, with rho its relative slack, at most `max_share`; and it is never left with
        less than its smallest chunk. What the short ones do not use, it gets after all.
        """
        rho = float(min(candidate.standing.relative_slack, self.max_share))
        if rho <= 0.0:
            return False
        instances = span(self.state, candidate.request)
        target, begun = self.iteration.target(instances), self.iteration.seconds(instances)
        floor = min(self.predictor.floor, planned.length)
        smallest = self.iteration.seconds_with(planned.instance, context, floor) - begun
        limit = min(begun + rho * target, target - smallest)
        if limit <= begun:
            return False
        self._limits.update(dict.fromkeys(instances, limit))
        return True

    # requests that wait

    def _admit(self, candidate: Candidate) -> None:
        request = candidate.request
        if request.id in self.clearings:
            return
        headroom = self.state.headroom(request)
        need = request.slots_to_take + headroom
        if sum(self.rooms.values()) < need:
            self.blocked = candidate
            return
        planned = plan_shards(
            request.slots_to_take, headroom, self.rooms, self._order(candidate, need), self.predictor.shard_tokens
        )
        assert planned is not None, "there is room"
        first = planned[0]
        if first.instance in self.iteration and first.instance not in self._full:
            limit = self._limits.get(first.instance, math.inf)
            if self._add_chunk(request, first, (), self._is_next(first.instance), limit):
                self.admissions.append(Admission(request, planned))
                for shard in planned:
                    self.pending[shard.instance] += self._work(shard)
        for shard in planned:
            self.rooms[shard.instance] -= shard.length
        last = planned[-1].instance
        self.rooms[last] = max(0, self.rooms[last] - headroom)

    def _order(self, candidate: Candidate, need: int) -> list[int]:
        """Where its KV goes first. A short one goes to one instance: with least pending work, of those that can start.

        A long one begins there too. A short one that fits nowhere whole is spread over as few as possible.
        """

        def cannot_start(number: int) -> bool:
            return number not in self.iteration or number in self._full

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

    # both

    def _is_next(self, instance: int) -> bool:
        """Whether nobody higher in rank prefills on the instance: then it gets at least the smallest chunk."""
        if instance in self._served:
            return False
        self._served.add(instance)
        return True

    def _add_chunk(self, request: Request, planned: KVRange, context: Context, is_next: bool, limit: float) -> int:
        """Tokens of its chunk, all from the open shard; 0 if there is no time for the smallest worth its while."""
        instance = planned.instance
        most = min(planned.length, self.state.config.max_batch_tokens - self.iteration.tokens(instance))
        if most <= 0:
            self._full.add(instance)
            return 0
        smallest = min(self.predictor.floor, planned.length, most)
        length = self.iteration.largest_chunk(instance, context, most, limit)
        if length < smallest:
            if not is_next:
                if not context:
                    self._full.add(instance)
                return 0
            length = smallest
        self.iteration.add_chunk(request, instance, context, length)
        return length
