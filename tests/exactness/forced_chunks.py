"""Medha's frame with nothing left to it: the size of chunks, the number of KV shards, and a pause, all forced."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from longspan.core.books.request import Request, RequestStatus
from longspan.core.news import News
from longspan.core.policies.base import Policy
from longspan.core.policies.chunked.predictor import Predictor
from longspan.core.policies.chunked.ranking import Ranking
from longspan.core.policies.medha.baselines import Sarathi
from longspan.core.policies.medha.token_budget import TokenBudget
from longspan.core.state import SchedulerState


class Replaceable(Policy):
    """Hands over to another policy, which may be changed while no request is alive: the engine starts once only."""

    name = "replaceable"

    def __init__(self) -> None:
        super().__init__()
        self.policy: Policy = Sarathi()

    def schedule(self, state: SchedulerState, news: News, now: float) -> None:
        self.policy.schedule(state, news, now)

    def looks_ahead(self, state: SchedulerState, now: float) -> bool:
        return self.policy.looks_ahead(state, now)


class ForcedChunks(Sarathi):
    """Batches of `chunk_size` tokens, KV shards of `shard_tokens`. The first request that comes is watched.

    pauses: until its middle the watched request runs alone; at the next chunk boundary it stands still until all others
        have ended. With one chunk for all of its prompt it has no such boundary: after its first token it gives up its
        KV, and is computed again behind the others.

    chunks: tokens of each chunk of the watched request. holders: instances that ever held its KV.
    most_in_flight: batches with chunks of it that were under way at the same time.
    paused_at: the tokens that it had stored when it stood still; None if it never did.
    """

    name = "forced_chunks"

    def __init__(self, chunk_size: int, shard_tokens: int, *, pauses: bool) -> None:
        super().__init__()
        self.chunk_size = chunk_size
        self.shard_tokens = shard_tokens
        self.pauses = pauses
        self.watched: Request | None = None
        self.chunks: list[int] = []
        self.holders: set[int] = set()
        self.most_in_flight = 0
        self.paused_at: int | None = None
        self._stored = 0

    def predictor(self, state: SchedulerState) -> Predictor:
        return TokenBudget(state.config, self.chunk_size, self.shard_tokens)

    def schedule(self, state: SchedulerState, news: News, now: float) -> None:
        if self.watched is None:
            self.watched = state.waiting.first
        if self.pauses and self.paused_at is None and self._has_no_boundary_left() and self._others_are_there(state):
            self.paused_at = 0
            state.preempt(self.watched.id)
        super().schedule(state, news, now)
        self._note(state, self.watched)

    def _ranking(self, state: SchedulerState, now: float) -> Ranking:
        ranking = super()._ranking(state, now)
        watched = self.watched
        assert watched is not None
        if not self.pauses or not self._others_are_there(state):
            return ranking
        if self.paused_at is None and 2 * watched.num_stored >= watched.num_prompt_tokens:
            if watched.num_stored == watched.num_prompt_tokens:
                return _only(ranking, lambda _: False)  # its first token first, then `schedule` takes its KV
            self.paused_at = watched.num_stored
        stands_still = self.paused_at is not None
        return _only(ranking, lambda request: (request is watched) is not stands_still)

    def _has_no_boundary_left(self) -> bool:
        assert self.watched is not None
        return self.watched.is_ready and self.watched.status is RequestStatus.DECODING

    def _others_are_there(self, state: SchedulerState) -> bool:
        return any(request is not self.watched for request in (*state.waiting, *state.with_kv()))

    def _note(self, state: SchedulerState, watched: Request) -> None:
        self.holders.update(state.placement.holders(watched.id))
        if watched.num_stored > self._stored and not watched.num_output_tokens:
            self.chunks.append(watched.num_stored - self._stored)
            self.most_in_flight = max(self.most_in_flight, watched.in_flight)
        self._stored = watched.num_stored


def _only(ranking: Ranking, wanted: Callable[[Request], bool]) -> Ranking:
    return replace(
        ranking,
        ready=[candidate for candidate in ranking.ready if wanted(candidate.request)],
        order=np.array([place for place in ranking.order if wanted(ranking.queue[place])], dtype=np.intp),
    )
