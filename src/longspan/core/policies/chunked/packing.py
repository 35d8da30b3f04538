"""Packing: which requests prefill in the next iteration, in order of rank (the paper's algorithm 2).

Prompts that have begun go on where their KV is (`chunk_size`), long ones perhaps behind short ones (`space_sharing`);
waiting ones start where there is room (`admission`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from longspan.core.books.request import Request
from longspan.core.policies.chunked.chunk_size import Chunks
from longspan.core.policies.chunked.iteration import Iteration
from longspan.core.policies.chunked.memory.admission import Admissions
from longspan.core.policies.chunked.memory.clearing import Clearing
from longspan.core.policies.chunked.memory.copying import Elsewhere
from longspan.core.policies.chunked.memory.kvp import span
from longspan.core.policies.chunked.memory.pool_shares import PoolShares
from longspan.core.policies.chunked.ranking import Candidate, Ranking
from longspan.core.policies.chunked.space_sharing import SpaceSharing
from longspan.core.policies.chunked.teams.width import Width
from longspan.core.state import SchedulerState


class Packer:
    """Fills one iteration, which has its decodes already.

    max_share: see `SpaceSharing`. clearings: by waiting request, see `Clearings`. shares: of the pool.
    waits_for_prefix: see `ChunkedPrefill.Options`.
    """

    def __init__(
        self, state: SchedulerState, iteration: Iteration, max_share: float, clearings: Mapping[str, Clearing],
        width: Width, shares: PoolShares, waits_for_prefix: bool = False, elsewhere: Elsewhere | None = None,
    ) -> None:  # fmt: skip
        self.state = state
        self.iteration = iteration
        self.chunks = Chunks(iteration, state.config.max_batch_tokens)
        self.sharing = SpaceSharing(iteration, max_share)
        self.width = width
        self.admissions = Admissions(
            state, self.chunks, clearings, width, shares, waits_for_prefix, elsewhere or Elsewhere(), self._lift
        )
        self._ready: Mapping[str, Candidate] = {}

    def pack(self, ranking: Ranking) -> None:
        self._ready = {candidate.request.id: candidate for candidate in ranking.ready}
        waiting = ranking.waiting(self.admissions.near)
        first = next(waiting, None)
        for candidate in (*ranking.ready, None):
            while first is not None and (candidate is None or first.key < candidate.key) and self.admissions.are_open():
                self.admissions.admit(first, lambda instance: self.sharing.limit((instance,)))
                first = next(waiting, None)
            if candidate is not None:
                self._go_on(candidate)
        for late in self.sharing.deferred:
            request = late.candidate.request
            context = self.state.placement.context(request.id)
            self.chunks.add(request, request.reserved[0], context, late.is_next, math.inf)

    def _lift(self, request: Request) -> bool:
        """Have a prompt go on in its turn or before; returns whether it can."""
        candidate = self._ready.get(request.id)
        if candidate is None or not self.iteration.covers(
            self.width.team(self.state, request) or span(self.state, request)
        ):
            return False
        self._go_on(candidate)
        return True

    def _go_on(self, candidate: Candidate) -> None:
        """The next chunk of a prompt that has begun, once."""
        request = candidate.request
        if request.id in self.admissions.ahead:
            return
        self.admissions.ahead.add(request.id)
        team = self.width.team(self.state, request)
        instances = team or span(self.state, request)
        if not self.iteration.covers(instances):
            return
        if len(team) > 1:
            self.chunks.add_wide(request, team, self.chunks.is_next(*team), self.sharing.limit(team))
            return
        planned = request.reserved[0]
        context = self.state.placement.context(request.id)
        is_next = self.chunks.is_next(planned.instance)
        limit = self.sharing.limit(instances)
        if not self.sharing.holds_back(candidate, instances, planned, context, is_next):
            self.chunks.add(request, planned, context, is_next, limit)
