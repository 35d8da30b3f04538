"""The scheduler's books, and the few moves that change them. Every move keeps them consistent.

Policies act through `SchedulerState`, which checks first; events come in through `lifecycle`. No other module writes
here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from msgspec.structs import replace

from longspan.config import SchedulerConfig
from longspan.core.actions import OWN, Action, FreeKV, MigrateKV, RunBatch, Segment, StopRequest
from longspan.core.books.changes import Changes
from longspan.core.books.claims.repairs import filling
from longspan.core.books.cluster import Cluster, Work
from longspan.core.books.decode_steps import Decodes, DecodeSteps
from longspan.core.books.numbering import Numbering
from longspan.core.books.request import Request, RequestStatus
from longspan.core.books.waiting_queue import WaitingQueue
from longspan.core.costs.cost_model import CostModel
from longspan.core.decision import Decision
from longspan.core.kv.kv_placement import KVPlacement
from longspan.core.kv.residence import Residence
from longspan.core.prefixes.cache import PrefixCache


class Ledger(DecodeSteps):
    """Requests, their KV, the instances, and the actions decided so far in this call.

    batches, migrations: what was issued and has not completed, by number.
    started: batches that began to run during this call, issued or promoted.
    tokens_when_grown: of those that hold KV, all together.
    num_finished, num_finished_tokens: requests that came to their own end, and what they generated.
    arrived, ended, completed: requests that joined the queue, those that came to an end, and batches that ran to it,
        by this call's event.
    overgrown: those that will be interrupted when they rest, for their next token would not fit.
    losing: the instance that is lost by this call's event, which is told nothing any more. changes: what that did.
    """

    def __init__(
        self, config: SchedulerConfig, first_instance: int = 0, numbering: Numbering | None = None,
        cost_model: CostModel | None = None,
    ) -> None:  # fmt: skip
        """Open them. first_instance: the number of the first. numbering: shared with others' books; else its own.

        cost_model: tells what cached KV is worth.
        """
        self.numbering = Numbering() if numbering is None else numbering
        cluster = Cluster(config.num_instances, config.kv_tokens, config.pp, first_instance)
        placement = KVPlacement(self.numbering)
        prefixes = PrefixCache(config.prefix_block, cluster, placement, self._emit_free, cost_model)
        super().__init__(config, cluster, placement, prefixes)
        self.waiting = WaitingQueue()
        self.batches: dict[int, Work[RunBatch]] = {}
        self.migrations: dict[int, Work[MigrateKV]] = {}
        self.actions: list[Action] = []
        self.started: list[Work[RunBatch]] = []
        self.num_arrivals = 0
        self.num_migrations = 0
        self.num_preemptions = 0
        self.tokens_when_grown = 0
        self.num_finished = 0
        self.num_finished_tokens = 0
        self.arrived: list[Request] = []
        self.ended: list[Request] = []
        self.completed: list[RunBatch] = []
        self.losing: int | None = None
        self.overgrown: list[Request] = []
        self.changes = Changes()

    def take_actions(self) -> list[Action]:
        actions, self.actions = self.actions, []
        return actions

    def take_started(self) -> list[Work[RunBatch]]:
        started, self.started = self.started, []
        return started

    def take_decisions(self) -> tuple[Decision, ...]:
        decisions, self.decisions = self.decisions, []
        return tuple(decisions)

    # batches

    def issue(
        self, group: tuple[int, ...], segments: Sequence[Segment], decodes: Decodes = (), *, is_decode: bool
    ) -> RunBatch:
        """Run a batch on idle instances now. decodes: requests that enter it first with one more token each."""
        work = self._new_batch(group, segments, decodes, is_decode)
        self.cluster.start(work)
        self.started.append(work)
        return self._emit_batch(work)

    def issue_behind(self, running: Work[RunBatch], segments: Sequence[Segment]) -> RunBatch:
        """Queue the next decode iteration behind `running`, on the same group."""
        work = self._new_batch(running.instances, segments, (), is_decode=True)
        self.cluster.queue(work)
        return self._emit_batch(work)

    def pass_on(self, work: Work[RunBatch]) -> None:
        """Note that a batch leaves the first stage: the prefills in it may send their next chunk after it."""
        self.cluster.pass_on(work)
        for segment in work.action.segments:
            request = self.requests[segment.request_id]
            if request.status is RequestStatus.PREFILLING and request.tokens_to_compute:
                request.flowing = True
                self.cluster.list_flowing(request, self.placement.holders(request.id))

    def issue_repair(self, group: tuple[int, ...], segments: Sequence[Segment]) -> RunBatch:
        """Run a batch on idle instances that computes lost tokens again: each segment the next ones of a request."""
        batch = RunBatch(self.numbering.batches, group, tuple(segments))
        self.numbering.batches += 1
        work = Work(batch, group, is_repair=True)
        for segment in segments:
            self.fill(segment)
            (kept,) = segment.store
            self.take(kept.instance, kept.length, segment.request_id)
        self.cluster.start(work)
        return self._emit_batch(work)

    def finish_batch(self, work: Work[RunBatch]) -> None:
        del self.batches[work.action.batch_id]
        if not work.is_repair:
            self.completed.append(work.action)
        promoted = self.cluster.finish(work)
        if promoted is not None:
            self.started.append(promoted)
        if work.is_repair:
            self.finish_repairs(work.action.segments, filling(self.batches.values()))
        block, requests, decoding = self.prefixes.block, self.requests, RequestStatus.DECODING
        for segment in work.action.segments:
            request, length = requests[segment.request_id], segment.length
            request.in_flight -= 1
            request.num_scheduled -= length
            request.num_computed = computed = request.num_computed + length
            if computed % block and request.status is decoding:
                continue  # it has no block more
            if request.prefix_keys and not work.is_repair:
                self._register(request)

    def _register(self, request: Request) -> None:
        if request.num_stored == self.placement.own[request.id].end:
            self.prefixes.register(request)
            if request.status is RequestStatus.PREFILLING:
                self.prefixes.coming.note(request)

    def _new_batch(
        self, group: tuple[int, ...], segments: Sequence[Segment], decodes: Decodes, is_decode: bool
    ) -> Work[RunBatch]:
        first = self.enter_decodes(decodes) if decodes else []
        batch = RunBatch(self.numbering.batches, group, (*first, *[self._enter(segment) for segment in segments]))
        self.numbering.batches += 1
        self.num_prefills += not is_decode
        return Work(batch, group, is_decode)

    def _emit_batch(self, work: Work[RunBatch]) -> RunBatch:
        self.batches[work.action.batch_id] = work
        self.actions.append(work.action)
        return work.action

    def _enter(self, segment: Segment) -> Segment:
        """Have a request enter a batch: its slots are taken at once. Returns the segment, which names its residence."""
        request = self.requests[segment.request_id]
        if request.status is RequestStatus.WAITING:
            self.waiting.remove(request)
            request.become(RequestStatus.PREFILLING)
            self.prefixes.adopting.pop(request.id, None)
            if request.prefix_keys:
                self.prefixes.coming.note(request)
            self.tokens_when_grown += request.tokens_when_grown
        elif request.in_flight == 0:
            self.leave_ready(request)
        else:
            self.stop_flowing(request)
        residence = self.placement.add(request.id, segment.store)
        self._take_in(request, segment, residence)
        return replace(segment, residence=residence.number) if segment.residence == OWN else segment

    def _take_in(self, request: Request, segment: Segment, residence: Residence) -> None:
        request.in_flight += 1
        request.num_scheduled += segment.length
        for stored in segment.store:
            self.take(stored.instance, stored.end - stored.start, request.id)
        if request.reserved:
            self.use_reservation(request)
        self.renew_promise(request, residence)

    def _emit_free(self, action: FreeKV) -> None:
        told = self._told(action.instances)
        if told:
            self.actions.append(action if told == action.instances else FreeKV(action.residence, told, action.ranges))

    def _told(self, instances: tuple[int, ...]) -> tuple[int, ...]:
        """Those of the instances that are still told anything."""
        if self.losing is None or self.losing not in instances:
            return instances
        return tuple([number for number in instances if number != self.losing])

    # one request

    def join_queue(self, request: Request) -> None:
        """Let the request wait for its turn, new or preempted."""
        if request.prefix_keys:
            request.num_cached = self.prefixes.lookup.longest(request)
        if self.fits(request):
            self.waiting.add(request)
        else:
            self.waiting.set_aside(request)

    def drop_kv(self, request: Request, reason: Literal["finished", "aborted", "preempted"]) -> None:
        """Let the request refer to no KV any more. What has keys stays until its slots are needed."""
        self.leave_ready(request)
        self.hand_over(request)
        self.drop_claims(request)
        self.tokens_when_grown -= request.tokens_when_grown
        holders = self._told(self.placement.holders(request.id))
        self.repairing.pop(request.id, None)
        self.parted.pop(request.id, None)
        self.prefixes.release(request)
        self.actions.append(StopRequest(request.id, holders, reason))

    def undo_adoption(self, request: Request) -> None:
        """Take back what a waiting request has adopted, and reserved behind that."""
        self.drop_claims(request)
        self.prefixes.release(request, is_undone=True)
        request.num_computed = 0

    def return_to_queue(self, request: Request) -> None:
        """Preempt the request: drop its KV; prompt and output are computed again when its turn comes."""
        self.drop_kv(request, "preempted")
        request.num_computed = 0
        request.num_preemptions += 1
        self.num_preemptions += 1
        request.become(RequestStatus.WAITING)
        self.join_queue(request)

    def forget(self, request: Request) -> None:
        """Forget the request, which has ended and which nothing touches."""
        if request.id in self.prefixes.adopting:
            self.prefixes.release(request, is_undone=True)
        if request.status is RequestStatus.WAITING:
            self.waiting.remove(request)
        self.drop_claims(request)
        request.become(RequestStatus.ENDED)
        del self.requests[request.id]

    def leave_ready(self, request: Request) -> None:
        """Note that something is about to touch the request, or that it ends."""
        self.cluster.unlist_ready(request, self.placement.holders)
