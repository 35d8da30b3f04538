"""The scheduler's books, and the few moves that change them. Every move keeps them consistent.

Policies act through `SchedulerState`, which checks first; events come in through `lifecycle`. No other module writes
here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from msgspec.structs import replace

from longspan.config import SchedulerConfig
from longspan.core.actions import OWN, Action, FreeKV, KVRange, MigrateKV, RunBatch, Segment, StopRequest
from longspan.core.books.cluster import Cluster, Work
from longspan.core.books.kv_placement import KVPlacement
from longspan.core.books.numbering import Numbering
from longspan.core.books.request import Request, RequestStatus
from longspan.core.books.residence import Residence
from longspan.core.books.waiting_queue import WaitingQueue
from longspan.core.decision import Decision
from longspan.core.internal_error import InternalError


class Ledger:
    """Requests, their KV, the instances, and the actions decided so far in this call.

    batches, migrations: what was issued and has not completed, by number.
    started: batches that began to run during this call, issued or promoted.
    num_prefills: batches issued that were not pure decode iterations.
    tokens_when_grown: of those that hold KV, all together.
    num_finished, num_finished_tokens: requests that came to their own end, and what they generated.
    arrived, ended: requests that joined the queue, and that came to an end, by this call's event.
    completed: batches that ran to their end, by this call's event.
    decisions: why the policy decided as it did in this call.
    """

    def __init__(
        self, config: SchedulerConfig, first_instance: int = 0, numbering: Numbering | None = None
    ) -> None:
        """Open them. first_instance: the number of the first. numbering: shared with others' books; else its own."""
        self.config = config
        self.numbering = Numbering() if numbering is None else numbering
        self.cluster = Cluster(config.num_instances, config.kv_tokens, config.pp, first_instance)
        self.placement = KVPlacement(self.numbering)
        self.requests: dict[str, Request] = {}
        self.waiting = WaitingQueue()
        self.batches: dict[int, Work[RunBatch]] = {}
        self.migrations: dict[int, Work[MigrateKV]] = {}
        self.actions: list[Action] = []
        self.started: list[Work[RunBatch]] = []
        self.num_arrivals = 0
        self.num_prefills = 0
        self.num_migrations = 0
        self.num_preemptions = 0
        self.tokens_when_grown = 0
        self.num_finished = 0
        self.num_finished_tokens = 0
        self.arrived: list[Request] = []
        self.ended: list[Request] = []
        self.completed: list[RunBatch] = []
        self.decisions: list[Decision] = []
        self._ready_moments = 0

    def take_actions(self) -> list[Action]:
        actions, self.actions = self.actions, []
        return actions

    def take_started(self) -> list[Work[RunBatch]]:
        started, self.started = self.started, []
        return started

    def take_decisions(self) -> tuple[Decision, ...]:
        if not self.decisions:
            return ()
        decisions, self.decisions = self.decisions, []
        return tuple(decisions)

    # batches

    def issue(self, group: tuple[int, ...], segments: Sequence[Segment], *, is_decode: bool) -> RunBatch:
        """Run a batch on idle instances now."""
        work = self._new_batch(group, segments, is_decode)
        self.cluster.start(work)
        self.started.append(work)
        return self._emit_batch(work)

    def issue_behind(self, running: Work[RunBatch], segments: Sequence[Segment]) -> RunBatch:
        """Queue the next decode iteration behind `running`, on the same group."""
        work = self._new_batch(running.instances, segments, is_decode=True)
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

    def finish_batch(self, work: Work[RunBatch]) -> None:
        del self.batches[work.action.batch_id]
        self.completed.append(work.action)
        promoted = self.cluster.finish(work)
        if promoted is not None:
            self.started.append(promoted)
        for segment in work.action.segments:
            request = self.requests[segment.request_id]
            request.in_flight -= 1
            request.num_scheduled -= segment.length
            request.num_computed += segment.length

    def _new_batch(self, group: tuple[int, ...], segments: Sequence[Segment], is_decode: bool) -> Work[RunBatch]:
        batch = RunBatch(self.numbering.batches, group, tuple([self._enter(segment) for segment in segments]))
        self.numbering.batches += 1
        self.num_prefills += not is_decode
        return Work(batch, group, is_decode)

    def _emit_batch(self, work: Work[RunBatch]) -> RunBatch:
        self.batches[work.action.batch_id] = work
        self.actions.append(work.action)
        return work.action

    def _enter(self, segment: Segment) -> Segment:
        """A request enters a batch: its store slots are taken at once, so nobody else can count on them.

        Returns the segment, which names the request's residence.
        """
        request = self.requests[segment.request_id]
        if request.status is RequestStatus.WAITING:
            self.waiting.remove(request)
            request.become(RequestStatus.PREFILLING)
            self.tokens_when_grown += request.tokens_when_grown
        elif request.in_flight == 0:
            self._leave_ready(request)
        else:
            self.stop_flowing(request)
        request.in_flight += 1
        request.num_scheduled += segment.length
        residence = self.placement.add(request.id, segment.store)
        for stored in segment.store:
            self.cluster.take(stored.instance, stored.end - stored.start)
        if request.reserved:
            self._use_reservation(request)
        self._renew_promise(request, residence)
        if segment.residence == OWN:
            segment = replace(segment, residence=residence.number)
        return segment

    # migrations

    def start_migration(
        self, request: Request, source: int, target: int, ranges: tuple[tuple[int, int], ...]
    ) -> MigrateKV:
        """Start it: the target's slots are taken now, the source's are given back when the migration is done."""
        residence = self.placement.own[request.id].number
        action = MigrateKV(self.numbering.migrations, request.id, source, target, ranges, residence)
        work = Work(action, (source, target))
        self.numbering.migrations += 1
        self.num_migrations += 1
        self._leave_ready(request)
        request.become(RequestStatus.MIGRATING)
        self.cluster.take(target, action.num_tokens)
        self.cluster.start(work)
        self.migrations[action.migration_id] = work
        self.actions.append(action)
        return action

    def finish_migration(self, work: Work[MigrateKV]) -> Request:
        action = work.action
        del self.migrations[action.migration_id]
        self.cluster.finish(work)
        self.placement.move(action.request_id, action.source, action.target, action.ranges)
        self.cluster.give_back(action.source, action.num_tokens)
        request = self.requests[action.request_id]
        if request.status is not RequestStatus.DRAINING:
            self._renew_promise(request, self.placement.own[request.id])
        return request

    # one request

    def headroom(self, request: Request) -> int:
        """Return the free slots that a request should find once all its known tokens have KV."""
        return min(request.max_kv_tokens - request.num_tokens, self.config.decode_headroom)

    def make_ready(self, request: Request) -> None:
        """Note that nothing touches the request any more: it is free to run, move or be preempted."""
        self.stop_flowing(request)
        request.become(request.resting_status)
        request.ready_order = self._ready_moments
        request.prefills_seen = self.num_prefills
        self._ready_moments += 1
        self.cluster.list_ready(request, self.placement.holders(request.id))

    def drop_kv(self, request: Request, reason: Literal["finished", "aborted", "preempted"]) -> None:
        self._leave_ready(request)
        self.drop_claims(request)
        self.tokens_when_grown -= request.tokens_when_grown
        residence = self.placement.free(request.id)
        for number, tokens in residence.counts.items():
            self.cluster.give_back(number, tokens)
        self.actions.append(FreeKV(residence.number, residence.holders))
        self.actions.append(StopRequest(request.id, residence.holders, reason))

    def return_to_queue(self, request: Request) -> None:
        """Preempt the request: drop its KV; prompt and output are computed again when its turn comes."""
        self.drop_kv(request, "preempted")
        request.num_computed = 0
        request.num_preemptions += 1
        self.num_preemptions += 1
        request.become(RequestStatus.WAITING)
        self.waiting.add(request)

    def forget(self, request: Request) -> None:
        """Forget the request, which has ended and which nothing touches."""
        if request.status is RequestStatus.WAITING:
            self.waiting.remove(request)
        self.drop_claims(request)
        request.become(RequestStatus.ENDED)
        del self.requests[request.id]

    def reserve(self, request: Request, planned: tuple[KVRange, ...]) -> None:
        """Set slots aside for the request's next tokens, in place of what was reserved for it before."""
        self._set_reservation(request, planned)
        if (residence := self.placement.own.get(request.id)) is not None:
            self._renew_promise(request, residence)

    def drop_claims(self, request: Request) -> None:
        """Promise the request nothing any more, and reserve nothing for it."""
        self._drop_promise(request)
        self._set_reservation(request, ())

    def _set_reservation(self, request: Request, planned: tuple[KVRange, ...]) -> None:
        for old in request.reserved:
            self.cluster[old.instance].reserved -= old.length
        request.reserved = planned
        for new in planned:
            self.cluster[new.instance].reserved += new.length

    def _use_reservation(self, request: Request) -> None:
        """The plan begins where the stored tokens end."""
        stored = request.num_stored
        left = [KVRange(r.instance, max(r.start, stored), r.end) for r in request.reserved if r.end > stored]
        self._set_reservation(request, tuple(left))

    def _drop_promise(self, request: Request) -> None:
        if request.home is not None:
            self.cluster[request.home].promised -= request.promised
            request.home, request.promised = None, 0

    def _renew_promise(self, request: Request, residence: Residence) -> None:
        """For tokens behind those stored or planned: where the last of these is, the next will most likely go."""
        reserved = request.reserved
        home = reserved[-1].instance if reserved else residence.owners[-1]
        left = request.max_kv_tokens - residence.end - (request.num_reserved if reserved else 0)
        promised = min(left, self.config.decode_headroom)
        if home != request.home or promised != request.promised:
            self._drop_promise(request)
            request.home, request.promised = home, promised
            self.cluster[home].promised += promised

    def stop_flowing(self, request: Request) -> None:
        if request.flowing:
            request.flowing = False
            self.cluster.unlist_flowing(request, self.placement.holders(request.id))

    def _leave_ready(self, request: Request) -> None:
        self.cluster.unlist_ready(request, self.placement.holders(request.id))


def decode_segment(ledger: Ledger, request: Request, master: int) -> Segment:
    """Return the segment of one more token of `request` at `master`, which keeps its KV."""
    residence = ledger.placement.own.get(request.id)
    if residence is None:
        raise InternalError(f"request {request.id} holds no KV: it cannot decode")
    start = residence.end
    store = (KVRange(master, start, start + 1),)
    return Segment(request.id, start, 1, (master,), store, residence.context, True, residence.number)
