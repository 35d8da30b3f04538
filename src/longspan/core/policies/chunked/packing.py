"""Packing: which requests prefill in the next iteration, in order of rank (the paper's algorithm 2).

Prompts that have begun go on where their KV is (`chunk_size`), long ones perhaps behind short ones (`space_sharing`);
waiting ones start where there is room (`admission`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from longspan.core.policies.chunked.admission import Admissions
from longspan.core.policies.chunked.chunk_size import Chunks
from longspan.core.policies.chunked.iteration import Iteration
from longspan.core.policies.chunked.memory.clearing import Clearing
from longspan.core.policies.chunked.memory.kvp import span
from longspan.core.policies.chunked.memory.pool_shares import PoolShares
from longspan.core.policies.chunked.ranking import Candidate, Ranking
from longspan.core.policies.chunked.space_sharing import SpaceSharing
from longspan.core.policies.chunked.teams.width import Width
from longspan.core.state import SchedulerState


class Packer:
    """Fills one iteration, which has its decodes already.

    max_share: see `SpaceSharing`. clearings: by waiting request, see `Clearings`. shares: of the pool.
    """

    def __init__(
        self, state: SchedulerState, iteration: Iteration, max_share: float, clearings: Mapping[str, Clearing],
        width: Width, shares: PoolShares,
    ) -> None:  # fmt: skip
        self.state = state
        self.iteration = iteration
        self.chunks = Chunks(iteration, state.config.max_batch_tokens)
        self.sharing = SpaceSharing(iteration, max_share)
        self.width = width
        self.admissions = Admissions(state, self.chunks, clearings, width, shares)

    def pack(self, ranking: Ranking) -> None:
        waiting = ranking.waiting()
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

    def _go_on(self, candidate: Candidate) -> None:
        """The next chunk of a prompt that has begun."""
        request = candidate.request
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
