"""Chunked prefill in mixed batches, with preemption at every chunk: the frame of Medha's policy, and of others.

At each event, for all instances that can take a batch (today: that are idle): rank the prompts, add every decode, fill
up with chunks in order of rank, and issue. What is left out simply keeps its KV where it is: preemption costs nothing.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial, reduce
from operator import attrgetter
from typing import ClassVar

from longspan.config import check_count
from longspan.core.actions import Segment
from longspan.core.books.request import Request
from longspan.core.decision import Decision
from longspan.core.news import News
from longspan.core.policies.base import Policy
from longspan.core.policies.chunked.decode import add_decodes, ready_decodes
from longspan.core.policies.chunked.iteration import Iteration, PlannedChunk
from longspan.core.policies.chunked.memory.clearing import Clearings
from longspan.core.policies.chunked.memory.copying import Elsewhere
from longspan.core.policies.chunked.memory.kvp import free_to_start
from longspan.core.policies.chunked.memory.pool_shares import PoolShares
from longspan.core.policies.chunked.memory.pressure import Concessions, Relief, junior_victim
from longspan.core.policies.chunked.packing import Packer
from longspan.core.policies.chunked.predictor import Predictor
from longspan.core.policies.chunked.priority import N, Standing
from longspan.core.policies.chunked.ranking import Backlog, Candidate, Ranking
from longspan.core.policies.chunked.teams.bonds import goes_on_next, prefix_to_come, team_to_come
from longspan.core.policies.chunked.teams.gathering import gather
from longspan.core.policies.chunked.teams.width import Width, keep_share, keep_together
from longspan.core.policies.parts.pace import Gaps
from longspan.core.state import SchedulerState


class ChunkedPrefill(Policy):
    """A frame: subclasses name their rule, and what they leave out.

    max_space_share: of an iteration, at most so much goes from the chunk of a long prompt with slack to short ones.
    makes_room: whether half-done prefills give way to a waiting request for memory.

    No request is stuck, and with `lars` none starves:

    - Every decode whose instances can start is in the next batch; if slots are short, the oldest are, and when there is
      none at all the most junior request gives up its KV (`pressure`).
    - On each instance the request that is highest in rank gets at least the smallest chunk, whatever the decodes take.
    - All of a prompt's slots are reserved with its first chunk, so a prefill that has begun always has room to go on.
    - A waiting request that lacks memory keeps those below it in rank from being admitted; so room comes together.
    - Under `lars` a newcomer's rank is never below -1 (slack is at least minus the work), and each request's own falls
      below that in time. So each request is outranked for a bounded time, also by an endless stream of requests of its
      priority.

    A request that arrives while everything is busy waits for one batch: as long as the target, or a smallest chunk.

    In a pipeline (SPP) it is asked whenever first stages are free, and a prompt's next chunk follows those that are in
    later stages. A request that is to give way lets these through first.
    """

    @dataclass(frozen=True)
    class Options(Policy.Options):
        """kvp_tokens_per_shard: a request's KV goes on at another instance after so many tokens; none: after as many
        as let it decode in time. wait_for_prefix: whether a prompt that begins as one does which is being computed
        waits for that, where it saves more than an iteration; it takes over what there is then."""

        kvp_tokens_per_shard: int | None = None
        wait_for_prefix: bool = True

        def __post_init__(self) -> None:
            if self.kvp_tokens_per_shard is not None:
                check_count("kvp_tokens_per_shard", self.kvp_tokens_per_shard)

    makes_room: ClassVar[bool] = True
    options: Options

    def __init__(self, **options: object) -> None:
        super().__init__(**options)
        self.max_space_share = 0.0
        self._known: Predictor | None = None
        self._backlog = Backlog()
        self._concessions = Concessions()
        self._clearings = Clearings()
        self._elsewhere = Elsewhere()
        self._giving_way: set[str] = set()
        self.width = Width()
        self.pool_shares = PoolShares()
        self._holds_back = False
        self._tightest: dict[int, Gaps] = {}  # by batch with decodes, in a pipeline

    def looks_ahead(self, state: SchedulerState, now: float) -> bool:
        return not self._holds_back and super().looks_ahead(state, now)

    def schedule(self, state: SchedulerState, news: News, now: float) -> None:
        self.observe(state, news, now)
        self._holds_back = self._somebody_could_start(state, now)
        if self._giving_way:
            self._giving_way = {
                name for name in self._giving_way if name in state.placement and state.request(name).flowing
            }
        while state.cluster.idle():
            state.disown()
            clearings, copies = self._clearings.advance(state), self._elsewhere.copies.advance(state)
            gather(state, self.width)
            if not state.waiting and not state.cluster.resting():
                return
            ranking = self._ranking(state, now)
            next_prefills = goes_on_next(state, ranking)
            pairs: list[tuple[int, ...]] = [*copies, *[(each.source, each.target) for each in clearings.values()]]
            pairs += [team for request in next_prefills if (team := self.width.team(state, request))]
            pairs += team_to_come(state, ranking, self.width, self.pool_shares)
            pairs += prefix_to_come(state, ranking)
            instances = free_to_start(state, next_prefills, pairs)
            iteration = Iteration(self._predictor(state), instances, now, self._running_gaps(state, instances))
            decodes = ready_decodes(state, iteration)
            victim = junior_victim(state, decodes)
            if victim is not None and self._give_way(state, victim, Decision("preempt for decodes", (victim.id,))):
                continue
            add_decodes(state, iteration, decodes, self.most_decodes(state, iteration, len(decodes)))
            packer = Packer(
                state, iteration, self.max_space_share, clearings, self.width, self.pool_shares,
                self.options.wait_for_prefix, self._elsewhere,
            )  # fmt: skip
            self._elsewhere.recomputing.begin_decision()
            packer.pack(ranking)
            for kept in packer.admissions.kept:
                self._backlog.settle(kept.request, kept.home, kept.saved_s, kept.left_s)
            if self.makes_room and self._relieve(state, packer, now):
                continue
            self._issue(state, packer, now)
            return

    def _running_gaps(self, state: SchedulerState, instances: Iterable[int]) -> dict[int, Gaps]:
        """Return the tightest gaps of the decodes in each instance's later stages."""
        if state.config.pp == 1:
            return {}
        tightest = {}
        for number in instances:
            batches = [work.action.batch_id for work in state.cluster[number].later]
            ahead = [self._tightest[batch_id] for batch_id in batches if batch_id in self._tightest]
            if ahead:
                tightest[number] = reduce(Gaps.tightest, ahead)
        return tightest

    def observe(self, state: SchedulerState, news: News, now: float) -> None:
        """Learn from what is new, before anything is decided."""
        self._predictor(state).feedback.learn(news, state.going_on, now)
        for request in news.ended:
            self.width.end(request)
        for request in news.fleet.returned:
            self.width.end(request)
        for batch in (*news.completed, *news.fleet.void):
            self._tightest.pop(batch.batch_id, None)

    @abstractmethod
    def predictor(self, state: SchedulerState) -> Predictor:
        """Make a new one, for this deployment."""

    def _predictor(self, state: SchedulerState) -> Predictor:
        if self._known is None:
            self._known = self.predictor(state)
        return self._known

    # rank

    @abstractmethod
    def rule(self, standing: Standing[N]) -> N:
        """Return a rank: the lowest goes first, among requests of one priority; higher priorities go before anyway."""

    def _ranking(self, state: SchedulerState, now: float) -> Ranking:
        """Who waits, and whose prefill can go on, first things first. Worked out anew: ranks change with time."""
        can_run = {
            request.id: self.candidate(state, request, now)
            for request in state.cluster.resting_prefills()
            if request.id not in self._giving_way
        }
        self._follow(state, now)
        order = self._backlog.order(now, self.rule)
        ready = sorted(can_run.values(), key=attrgetter("key"))
        queue, homes = self._backlog.queue, partial(self._backlog.homes, order)
        return Ranking(ready, queue, order, homes, lambda request: self.candidate(state, request, now))

    def _follow(self, state: SchedulerState, now: float) -> None:
        predictor = self._predictor(state)
        self._backlog.follow(state, lambda request: self.standing(state, request, now), predictor.prefill)

    def candidate(self, state: SchedulerState, request: Request, now: float) -> Candidate:
        """Rank a request that is looked at: one that can go on, or whose turn to start comes."""
        standing = self.standing(state, request, now)
        return Candidate(request, standing, self._key(request, standing))

    def standing(self, state: SchedulerState, request: Request, now: float) -> Standing[float]:
        """Return how a request stands; of one that waits, only `now` may change from one decision to the next."""
        return self._predictor(state).standing(request, now)

    def _key(self, request: Request, standing: Standing[float]) -> tuple[float, ...]:
        return (-request.service.priority, self.rule(standing), request.arrival_index)

    def _somebody_could_start(self, state: SchedulerState, now: float) -> bool:
        """A waiting request that there is room for wants its instances back."""
        self._follow(state, now)
        if not state.waiting:
            return False
        lacking = self._backlog.least_need()
        for instance in state.cluster.instances:
            if (room := instance.room) > 0:
                lacking -= room
                if lacking <= 0:
                    return True
        return False

    def most_decodes(self, state: SchedulerState, iteration: Iteration, num_ready: int) -> int:
        """Return how many of those that are ready an iteration takes."""
        return state.config.max_batch_requests

    # memory

    def yields(self, victim: Standing[float], beneficiary: Standing[float]) -> bool:
        """Tell whether a half-done prefill may lose its work, or move, so that one above it in rank has room."""
        return True

    def _relieve(self, state: SchedulerState, packer: Packer, now: float) -> bool:
        """Have somebody give way to who lacks memory; returns whether anything changed."""
        predictor, admissions = packer.iteration.predictor, packer.admissions
        relief = Relief(
            state, self._concessions, lambda request: self.standing(state, request, now), self._key, self.yields
        )
        if admissions.scattered is not None:
            beneficiary = admissions.scattered.request
            clearing = relief.clear_for(admissions.scattered, predictor.model.migration)
            if clearing is not None:
                self._concessions.note(state.request(clearing.victim_id), beneficiary, state)
                self._clearings.begin(beneficiary, clearing)
                moved = (clearing.source, clearing.target)
                state.explain(Decision("move for", (clearing.victim_id, beneficiary.id), moved))
                return True
        if admissions.blocked is not None:
            beneficiary = admissions.blocked.request
            victim = relief.preempt_for(admissions.blocked)
            if victim is not None:
                if not victim.flowing:
                    self._concessions.note(victim, beneficiary, state)
                return self._give_way(state, victim, Decision("preempt for", (victim.id, beneficiary.id)))
        return False

    def _give_way(self, state: SchedulerState, victim: Request, why: Decision) -> bool:
        """Preempt it; while chunks of it are in later stages, send no more. Returns whether that is new."""
        if victim.flowing:
            is_new = victim.id not in self._giving_way
            self._giving_way.add(victim.id)
            return is_new
        state.explain(replace(why, instances=state.placement.holders(victim.id)))
        state.preempt(victim.id)
        self.width.end(victim)
        if self._known is not None:
            self._known.feedback.forget(victim)
        return True

    # acts

    def _issue(self, state: SchedulerState, packer: Packer, now: float) -> None:
        for admission in packer.admissions.admitted:
            state.reserve(admission.request.id, admission.planned)
            self.width.begin(admission.request, admission.team)
        for part in packer.iteration.parts():
            growing = part.decodes if part.ring else ()
            decoding = Counter([master for request, master in growing if not request.reserved])
            segments = [_segment(state, chunk, place, decoding) for place, chunk in enumerate(part.chunks)]
            instances = part.instances
            chunks = {chunk.request.id: chunk.length for chunk in part.chunks}
            why, feedback = packer.iteration.explained(instances, chunks), packer.iteration.predictor.feedback
            if part.decodes and part.tightest is not None and state.config.pp > 1:
                self._tightest[state.num_batches] = part.tightest
            feedback.expect(state.num_batches, now, why.predicted["batch_s"], part.kind_now)
            state.run_batch(instances, segments, part.decodes)
            state.explain(why)


def _segment(state: SchedulerState, chunk: PlannedChunk, place: int, decoding: Mapping[int, int]) -> Segment:
    """place: in its batch; each prompt's stripes start elsewhere, so that remainders are spread. decoding: slots that
    the batch's decodes take."""
    if len(chunk.team) == 1:
        return state.prefill_segment(chunk.request, chunk.team, [(chunk.team[0], chunk.length)])
    shift = place % len(chunk.team)
    is_last = chunk.length == chunk.request.tokens_to_compute
    if is_last:
        kept = keep_together(state, chunk.request, chunk.length, decoding)
    else:
        kept = keep_share(state, chunk.request, chunk.length)
    return state.prefill_segment(chunk.request, chunk.team[shift:] + chunk.team[:shift], kept)
