"""ALISE: speculative scheduling with preemption (arXiv 2410.23537), as a small change to SSJF."""

from __future__ import annotations

from functools import partial
from heapq import nsmallest
from itertools import islice

from longspan.core.books.cluster import Instance
from longspan.core.books.request import Request, RequestStatus
from longspan.core.costs.cost_model import Chunk
from longspan.core.decision import Decision
from longspan.core.policies.parts.lanes import Lane, Rank
from longspan.core.policies.parts.mixed_batch import MixedBatch
from longspan.core.policies.speculative.ssjf import Speculative
from longspan.core.state import SchedulerState

AGING = 0.1
"""Seconds of predicted time that a second of age outweighs. (SSJF's code lets nobody wait ten times its own time.)"""

Ranks = dict[Request, Rank]


class Alise(Speculative):
    """Each iteration goes to those with least predicted time left, whether they run or wait.

    Time left is that of the prefill and, for each token expected, of a decode behind the context (the paper's linear
    model, here the cost model); it is worked out anew as tokens come. A request that is passed over pauses where its KV
    is. If a waiting request lacks memory, those that it outranks give up theirs, the last in rank first, and are
    computed again; the paper swaps it to the host and compresses it.

    No request starves: a newcomer outranks only those whose predicted time is longer, by more than a tenth of what they
    are older. No request goes round in circles: it gives way to a waiting one only if it was never preempted before;
    and for decodes that lack slots the last in rank gives up its KV, never the first, which so comes to its end.
    """

    name = "alise"
    needs_cost_model = True

    def __init__(self, **options: object) -> None:
        super().__init__(**options)
        self._known: dict[str, tuple[tuple[int, int, int], Rank]] = {}

    def let_go(self, request: Request) -> None:
        super().let_go(request)
        self._known.pop(request.id, None)

    def rank(self, state: SchedulerState, request: Request, now: float) -> Rank:
        tokens = self.lengths.left(request)
        seconds = _seconds_left(state, request, tokens)
        predicted = {"output_tokens": float(tokens), "work_s": seconds}
        state.explain(Decision("predict", (request.id,), predicted=predicted))
        return _aged(seconds, request)

    def iterate(self, state: SchedulerState, instance: Instance, lane: Lane, now: float) -> None:
        ranks = self._ranks(state, lane)
        while len(_decoding(state, ranks)) > instance.unreserved:
            last = max(ranks, key=partial(_place, ranks))
            if not lane.may_yield(last):
                break  # Slots, or itself, come back from a later pipeline stage; the first in rank take what there is.
            self._preempt_from(state, ranks, last, now)
        for request in self._with_room(state, instance, lane, ranks, now):
            ranks[request] = lane.rank_of(request)
        key = partial(_place, ranks)
        chosen = nsmallest(state.config.max_batch_requests, ranks, key=key)
        batch = MixedBatch(state, instance, self.options.token_budget)
        for request in sorted(chosen, key=lambda request: (request.tokens_to_compute > 1, key(request))):
            if request.status is RequestStatus.WAITING and batch.left:
                self.admit(state, instance, lane, request)
            batch.add(request)
        batch.run()

    def may_start(
        self, state: SchedulerState, instance: Instance, lane: Lane, request: Request, taken: int = 0
    ) -> bool:
        """Tell whether there is a place, or a request that it outranks may have to leave one."""
        if super().may_start(state, instance, lane, request, taken):
            return True
        rank = lane.rank_of(request)
        return any(self._rank_now(state, other) > rank for other in lane.runnable())

    def _ranks(self, state: SchedulerState, lane: Lane) -> Ranks:
        """Of those that run and may be in the next batch, as of now."""
        return {request: self._rank_now(state, request) for request in lane.runnable()}

    def _rank_now(self, state: SchedulerState, request: Request) -> Rank:
        """Its rank is worked out anew only where it has come further, or a request has finished to learn from."""
        at = (request.num_output_tokens, request.num_stored, self.lengths.num_learned)
        known = self._known.get(request.id)
        if known is None or known[0] != at:
            seconds = _seconds_left(state, request, self.lengths.left(request))
            known = self._known[request.id] = at, _aged(seconds, request)
        return known[1]

    def _with_room(
        self, state: SchedulerState, instance: Instance, lane: Lane, ranks: Ranks, now: float
    ) -> list[Request]:
        """Those that wait and may start, by rank; nobody passes one that lacks memory."""
        newcomers: list[Request] = []
        tokens = 0
        for request in list(islice(lane, state.config.max_batch_requests)):
            tokens += request.slots_to_take
            places = state.config.max_batch_requests - len(newcomers)
            while (lacking := tokens + len(_decoding(state, ranks)) - instance.unreserved) > 0:
                victims = _victims(ranks, lane.rank_of(request), lacking, places)
                if not victims:
                    return newcomers
                for victim in victims:
                    self._preempt_from(state, ranks, victim, now)
            newcomers.append(request)
        return newcomers

    def _preempt_from(self, state: SchedulerState, ranks: Ranks, request: Request, now: float) -> None:
        del ranks[request]
        self.preempt(state, request, now)


def _decoding(state: SchedulerState, ranks: Ranks) -> list[Request]:
    """Who takes a free slot, if those that run go on and nobody joins them."""
    best = nsmallest(state.config.max_batch_requests, ranks, key=partial(_place, ranks))
    return [request for request in best if not request.reserved]


def _victims(ranks: Ranks, rank: Rank, lacking: int, places: int) -> list[Request]:
    """Who gives way to a newcomer of this rank: the last of those below it, as many as it takes; none if it is in vain.

    lacking: slots. places: in the batch, for those above it and itself.
    """
    outranked = [request for request in ranks if ranks[request] > rank]
    if len(ranks) - len(outranked) >= places:
        return []
    victims: list[Request] = []
    for request in sorted(outranked, key=partial(_place, ranks), reverse=True):
        if lacking > 0 and request.is_ready and request.num_preemptions == 0:
            victims.append(request)
            lacking -= request.num_stored + request.num_reserved
    return victims if lacking <= 0 else []


def _aged(seconds: float, request: Request) -> Rank:
    """Predicted time less `AGING` times the age; without what is the same for all at any time."""
    return (seconds + AGING * request.arrived,)


def _seconds_left(state: SchedulerState, request: Request, tokens: int) -> float:
    """If it ran alone: its prefill, and the tokens that it is expected to generate."""
    model = state.cost_model
    chunk = Chunk(request.num_tokens - request.num_known, request.num_known)
    decode = model.decode(1, request.num_tokens, 1, 1)
    if chunk.length == 1 and chunk.context:
        return tokens * decode
    return model.prefill((chunk,), 1) + (tokens - 1) * decode


def _place(ranks: Ranks, request: Request) -> tuple[Rank, int]:
    return ranks[request], request.arrival_index
