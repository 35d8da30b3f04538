"""What a policy sees, and acts through."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from math import inf

from longspan.config import SchedulerConfig
from longspan.core.actions import OWN, KVRange, MigrateKV, RefuseReason, RefuseRequest, RunBatch, Segment
from longspan.core.books.cluster import Cluster
from longspan.core.books.decode_steps import Decodes
from longspan.core.books.ledger import Ledger
from longspan.core.books.migration import start_migration
from longspan.core.books.request import Request, RequestStatus
from longspan.core.books.rules import check_batch, check_idle, check_migration, check_ready, check_reservation
from longspan.core.books.waiting_queue import WaitingQueue
from longspan.core.costs.cost_model import CostModel
from longspan.core.decision import Decision
from longspan.core.internal_error import InternalError
from longspan.core.kv.kv_placement import KVPlacement
from longspan.core.prefixes.copying import find_copyable, start_copy
from longspan.errors import ConfigError


class SchedulerState:
    """The reading side of the books, and the things a policy can do.

    Each act is checked, applied at once (the policy sees its effect), and becomes an action. Everything else
    here is for reading. A policy works from `cluster.idle()` and `cluster[i].ready`, so that its cost follows
    the idle work, and never depends on how a set of strings happens to be ordered.
    """

    def __init__(self, ledger: Ledger, cost_model: CostModel | None = None) -> None:
        self._ledger = ledger
        self._cost_model = cost_model
        self.config: SchedulerConfig = ledger.config
        self.cluster: Cluster = ledger.cluster
        self.placement: KVPlacement = ledger.placement
        self.waiting: WaitingQueue = ledger.waiting

    @property
    def cost_model(self) -> CostModel:
        if self._cost_model is None:
            raise ConfigError(f"the policy {self.config.policy!r} predicts times, and was given no cost model")
        return self._cost_model

    @property
    def num_prefills(self) -> int:
        """Batches issued so far that were not pure decode iterations."""
        return self._ledger.num_prefills

    @property
    def num_batches(self) -> int:
        """The number that the next batch gets; it never falls."""
        return self._ledger.numbering.batches

    @property
    def finished_outputs(self) -> tuple[int, int]:
        """How many requests have finished, and the tokens that they generated, all together."""
        return self._ledger.num_finished, self._ledger.num_finished_tokens

    @property
    def tokens_when_grown(self) -> int:
        """Tokens that all requests `with_kv` may have together once they have grown."""
        return self._ledger.tokens_when_grown

    def with_kv(self) -> Iterator[Request]:
        """Return all requests that hold KV, also those that are draining."""
        return map(self._ledger.requests.__getitem__, self.placement)

    def with_reservation(self) -> list[Request]:
        """Return those of them that have slots reserved, in the same order."""
        return self._ledger.with_reservation()

    def request(self, request_id: str) -> Request:
        request = self._ledger.requests.get(request_id)
        if request is None:
            raise InternalError(f"request {request_id} is unknown or has ended")
        return request

    def going_on(self, names: Iterable[str]) -> list[str]:
        """Return those of these ids whose requests hold KV and have not ended: what drains gets no tokens more."""
        own, requests = self.placement.own, self._ledger.requests
        return [name for name in names if name in own and requests[name].end_reason is None]

    def headroom(self, request: Request) -> int:
        """Return the free slots that a request should find once all its known tokens have KV."""
        return self._ledger.headroom(request)

    def need(self, request: Request, instances: Collection[int] | None = None) -> int:
        """Return the free slots that a request has to find for its known tokens and its headroom.

        It finds none for what it adopts of these instances' tokens that others use; None: of all instances' tokens.
        """
        need = request.slots_to_take + self.headroom(request)
        if request.prefix_keys and request.status is RequestStatus.WAITING and not request.num_stored:
            need -= self._ledger.prefixes.lookup.used(request, instances)
        return need

    def instances_are_needed(self) -> bool:
        """Tell whether a waiting request would fit into some instances' room together, or a ready one rests.

        They wait for instances to come back, which a queued batch would put off, again and again.
        """
        if self.waiting:
            lacking = self.need(self.waiting.first)
            for instance in self.cluster.instances:
                if (room := instance.room) > 0:
                    lacking -= room
                    if lacking <= 0:
                        return True
        return any([instance.ready for instance in self.cluster.resting()])

    def prefill_segment(
        self,
        request: Request,
        compute: Sequence[int],
        retention: Mapping[int, int] | Iterable[tuple[int, int]],
        cuts: Iterable[int] = (),
    ) -> Segment:
        """Return a segment of the next tokens of `request`, striped over `compute`: all that lack KV, or a chunk.

        retention: tokens that each instance keeps, in token order; their sum is the segment's length.
        cuts: positions, where the tokens are not striped but cut into pieces; see `Segment`.
        """
        missing = request.missing
        start = position = missing[0][0] if missing else request.num_tokens
        store: list[KVRange] = []
        for instance, tokens in retention.items() if isinstance(retention, Mapping) else retention:
            if store and store[-1].instance == instance:
                store[-1] = KVRange(instance, store[-1].start, position + tokens)
            else:
                store.append(KVRange(instance, position, position + tokens))
            position += tokens
        own = self.placement.own.get(request.id)
        return Segment(
            request_id=request.id,
            start=start,
            length=position - start,
            compute=tuple(compute),
            store=tuple(store),
            context=self.placement.context(request.id),
            emits=position == request.num_tokens,
            residence=OWN if own is None else own.number,
            earlier=self.placement.earlier(request.id),
            cuts=tuple(cuts),
        )

    def decode_segment(self, request: Request, master: int) -> Segment:
        """Return a segment of one more token, computed and kept by `master`, which need not hold any KV of it."""
        return self.placement.decode_segment(request.id, master)

    def cached(self, request: Request, instances: Collection[int] | None = None) -> int:
        """Return how many of a waiting request's tokens `adopt` would find on these instances; None: on all."""
        return self._ledger.prefixes.lookup.longest(request, instances)

    def cached_on(self, request: Request, instances: Collection[int] | None = None) -> dict[int, int]:
        """Return the instances that hold what `cached` counts, and how much each."""
        return self._ledger.prefixes.lookup.held(request, instances)

    def least_cached(self, instance: int, tokens: int) -> float:
        """Return how much the first of the cached tokens are worth that go if so many slots of the instance are taken:
        a number that only compares; minus infinity if none go."""
        there = self.cluster[instance]
        return -inf if there.vacant >= tokens or not there.cached else self._ledger.prefixes.order.least(instance)

    def coming(self, request: Request) -> tuple[Request, int] | None:
        """Return who is computing what a waiting request's tokens go on with behind those that `cached` counts, and how
        many of its tokens there will be once that is done."""
        self._ledger.prefixes.lookup.find(request)
        return self._ledger.prefixes.coming.find(request)

    def is_shared(self, request: Request) -> bool:
        """Tell whether other requests refer to some of its KV: to move it moves theirs."""
        return self._ledger.prefixes.is_shared(request.id)

    def adopt(
        self, request: Request, instances: Collection[int], rooms: Mapping[int, int] | None = None
    ) -> int:
        """Let a waiting request take over the longest prefix of its tokens whose KV these instances hold.

        rooms: no more cached slots of an instance than this; else all that are not reserved.
        Returns its tokens. The rest, its last token at least, is missing as before, so its segment begins behind them,
        and every holder takes part. It is for requests that run in this very decision; others lose it again at the end.
        """
        if request.status is not RequestStatus.WAITING or request.num_stored:
            return 0
        return self._ledger.prefixes.adopt(request, instances, rooms)

    def disown(self, *requests: Request) -> None:
        """Take back what these waiting requests have adopted, if they have; without any, what all have."""
        adopting = self._ledger.prefixes.adopting
        for request in requests or list(adopting.values()):
            if request.id in adopting:
                self._ledger.undo_adoption(request)

    def run_batch(self, group: Sequence[int], segments: Sequence[Segment], decodes: Decodes = ()) -> RunBatch:
        """Run one iteration on idle instances: exactly those that compute, store or hold context.

        decodes: requests that run one more token each, with the instance that computes and keeps it; before the
        segments, as if `decode_segment` had made theirs.
        """
        check_batch(self._ledger, tuple(group), segments, decodes)
        is_decode = all(
            self._ledger.requests[segment.request_id].status is RequestStatus.DECODING for segment in segments
        )
        return self._ledger.issue(tuple(group), segments, decodes, is_decode=is_decode)

    def migrate(self, request_id: str, source: int, target: int, ranges: Iterable[tuple[int, int]]) -> MigrateKV:
        """Move token ranges (in order, disjoint) of a ready request between two idle instances."""
        request, ranges = self.request(request_id), tuple(ranges)
        check_migration(self._ledger, request, source, target, ranges)
        return start_migration(self._ledger, request, source, target, ranges)

    def copyable(self, request: Request, source: int, target: int) -> int:
        """Return how many of a waiting request's tokens `copy` would copy."""
        found = find_copyable(self._ledger, request, source, target)
        return 0 if found is None else found.num_tokens

    def copy(self, request: Request, source: int, target: int) -> MigrateKV | None:
        """Copy what a waiting request's prefix has on one idle instance to another, behind what that has already.

        It is found in both places once it is there; no more than 8192 tokens go at once. None: nothing can be copied,
        since other instances have some of it, or the target has no room.
        """
        check_idle(self._ledger, (source, target))
        return start_copy(self._ledger, request, source, target)

    def preempt(self, request_id: str) -> None:
        """Drop the KV of a ready request; it returns to its place in the queue, to be computed again."""
        request = self.request(request_id)
        check_ready(request)
        self._ledger.return_to_queue(request)

    def refuse(
        self, request_id: str, message: str, reason: RefuseReason = "too_long", retry_after_s: float | None = None
    ) -> None:
        """Give up a waiting request, with an answer. retry_after_s: when it may come again, if that is known."""
        request = self.request(request_id)
        if request.status is not RequestStatus.WAITING:
            raise InternalError(f"request {request_id} is {request.status.value}: too late to refuse it")
        if not isinstance(message, str):
            raise InternalError(f"request {request_id} is refused with {message!r}, which is no text")
        if retry_after_s is not None and not 0.0 <= retry_after_s < inf:
            raise InternalError(f"request {request_id} shall come again after {retry_after_s} s, which nobody can")
        self._ledger.forget(request)
        self._ledger.actions.append(RefuseRequest(request_id, message, reason, retry_after_s))

    def reserve(self, request_id: str, planned: Iterable[KVRange]) -> None:
        """Set slots aside for a request's next tokens, in place of what was reserved for it before.

        While a request has reserved slots it takes these, in order. So it always finds room for the tokens that it
        planned, whoever else grows.
        """
        request, planned = self.request(request_id), tuple(planned)
        check_reservation(self._ledger, request, planned)
        self._ledger.reserve(request, planned)

    def explain(self, decision: Decision) -> None:
        """Note why something is decided in this call; it changes nothing. Its numbers must be numbers."""
        for name, value in decision.predicted.items():
            if not isinstance(value, int | float):
                raise InternalError(f"{decision.step!r} is explained by {name} = {value!r}, which is no number")
        self._ledger.decisions.append(decision)
