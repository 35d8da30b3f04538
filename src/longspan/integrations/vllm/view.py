"""vLLM's engine as the policy sees it: one instance, with a pool of KV slots."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from longspan.config import SchedulerConfig
from longspan.core.actions import KVRange, RefuseReason
from longspan.core.books.cluster import Cluster
from longspan.core.books.request import Request, RequestStatus
from longspan.core.books.waiting_queue import WaitingQueue
from longspan.core.costs.cost_model import CostModel
from longspan.core.decision import Decision
from longspan.core.internal_error import InternalError
from longspan.core.kv.kv_placement import KVPlacement
from longspan.core.state import SchedulerState

INSTANCE = 0


class Placement(KVPlacement):
    """Whose KV is in the pool, as vLLM keeps it: block by block, and partly shared. Only how much is known.

    begun: requests that have begun, by id. found: requests that wait, and will find KV of their first tokens.
    """

    def __init__(self) -> None:
        self.begun: dict[str, Request] = {}
        self.found: dict[str, Request] = {}

    def __contains__(self, request_id: str) -> bool:
        return request_id in self.begun

    def __iter__(self) -> Iterator[str]:
        return iter(self.begun)

    def __len__(self) -> int:
        return len(self.begun)

    def context(self, request_id: str) -> tuple[tuple[int, int], ...]:
        request = self.begun.get(request_id) or self.found.get(request_id)
        return ((INSTANCE, request.num_stored),) if request is not None and request.num_stored else ()

    def counts(self, request_id: str) -> dict[int, int]:
        return dict(self.context(request_id))

    def holders(self, request_id: str) -> tuple[int, ...]:
        return (INSTANCE,) if request_id in self.begun else ()

    def last_holder(self, request_id: str) -> int:
        return INSTANCE


class EngineView(SchedulerState):
    """The part of `SchedulerState` that a policy reads which decides for one instance; kept by what vLLM does.

    Requests are vLLM's, as the core's `Request` has them: `num_computed` counts all tokens that vLLM has scheduled, so
    a request whose tokens are on their way rests as others do. A waiting one has as many as the prefix cache holds.

    requests: all that are alive. decodes: those whose prompt is done; `cluster` does not list them, there may be many.
    decode_tokens: tokens of these that were scheduled, all together.
    prefills: those that have begun their prompt. found: by id, tokens that the prefix cache had of it before it began.
    preempted: whom the policy has lose its KV, in this decision.
    """

    def __init__(self, config: SchedulerConfig, cost_model: CostModel) -> None:
        self._cost_model = cost_model
        self.config = config
        self.cluster = Cluster(1, config.kv_tokens)
        self.placement: Placement = Placement()
        self.waiting = WaitingQueue()
        self.requests: dict[str, Request] = {}
        self.decodes: dict[str, Request] = {}
        self.decode_tokens = 0
        self.prefills: dict[str, Request] = {}
        self.found: dict[str, int] = {}
        self.preempted: list[str] = []
        self._queued: set[str] = set()
        self._decisions: list[Decision] = []

    # what the policy reads, and does

    def with_kv(self) -> Iterator[Request]:
        return iter(self.placement.begun.values())

    def with_reservation(self) -> list[Request]:
        return list(self.prefills.values())

    def request(self, request_id: str) -> Request:
        return self.requests[request_id]

    def going_on(self, names: Iterable[str]) -> list[str]:
        begun = self.placement.begun
        return [name for name in names if name in begun and begun[name].end_reason is None]

    def headroom(self, request: Request) -> int:
        return min(request.max_kv_tokens - request.num_tokens, self.config.decode_headroom)

    def preempt(self, request_id: str) -> None:
        self.preempted.append(request_id)
        self.drop(self.requests[request_id])

    def refuse(
        self, request_id: str, message: str, reason: RefuseReason = "too_long", retry_after_s: float | None = None
    ) -> None:
        raise InternalError(f"{request_id} is refused, which vLLM cannot: {message}")

    def explain(self, decision: Decision) -> None:
        self._decisions.append(decision)

    # what vLLM has done

    def renew(self, config: SchedulerConfig, cost_model: CostModel) -> None:
        """Have other service levels and costs from now on."""
        self.config, self._cost_model = config, cost_model

    def take_decisions(self) -> tuple[Decision, ...]:
        decisions, self._decisions = self._decisions, []
        return tuple(decisions)

    def queue(self, request: Request, num_found: int = 0) -> None:
        """Note that a request may begin. num_found: its first tokens whose KV the prefix cache holds."""
        self.waiting.add(request)
        self._queued.add(request.id)
        self.find(request, num_found)

    def unqueue(self, request: Request) -> None:
        """Note that it may not begin; nothing if it waits for something else already."""
        if request.id in self._queued:
            self._queued.remove(request.id)
            self.waiting.remove(request)
            self.placement.found.pop(request.id, None)

    def is_queued(self, request: Request) -> bool:
        return request.id in self._queued

    def find(self, request: Request, num_found: int) -> bool:
        """Note how much the prefix cache holds of a request that waits; returns whether that is news."""
        if request.num_computed == num_found:
            return False
        request.num_computed = request.num_cached = self.found[request.id] = num_found
        self.placement.found[request.id] = request
        return True

    def run(self, request: Request, end: int, goes_on: bool) -> None:
        """Note that its tokens before `end` have been scheduled. goes_on: there are more of its prompt."""
        if request.status is RequestStatus.WAITING:
            self.unqueue(request)
            self.placement.begun[request.id] = request
        request.num_computed = end
        if goes_on:
            if request.id not in self.prefills:
                request.status = RequestStatus.PREFILLING
                self.prefills[request.id] = request
                self.cluster.list_ready([request], [(INSTANCE,)])
            request.reserved = (KVRange(INSTANCE, end, request.num_tokens),)
        elif request.id not in self.decodes:
            self._leave(request)
            request.status = RequestStatus.DECODING
            self.decodes[request.id] = request
            self.decode_tokens += end

    def drop(self, request: Request) -> None:
        """Note that it has lost its KV, and waits again."""
        self._leave(request)
        self.placement.begun.pop(request.id, None)
        request.status = RequestStatus.WAITING
        request.num_computed = request.num_cached = 0
        request.num_preemptions += 1
        self.queue(request)

    def end(self, request: Request) -> None:
        self._leave(request)
        self.unqueue(request)
        self.placement.begun.pop(request.id, None)
        request.status = RequestStatus.ENDED
        self.found.pop(request.id, None)
        del self.requests[request.id]

    def set_room(self, free: int, promised: int) -> None:
        """Note the slots that are free in the pool, and those of these that decodes count on."""
        (instance,) = self.cluster.instances
        instance.used = instance.capacity - min(free, instance.capacity)
        instance.reserved = sum([request.num_reserved for request in self.prefills.values()])
        instance.promised = promised + sum([self.headroom(request) for request in self.prefills.values()])
        for request in self.prefills.values():
            request.promised = self.headroom(request)

    def _leave(self, request: Request) -> None:
        """It is neither among the decodes nor among those that prefill."""
        if self.decodes.pop(request.id, None) is not None:
            self.decode_tokens -= request.num_computed
        if self.prefills.pop(request.id, None) is not None:
            self.cluster.unlist_ready(request, lambda name: (INSTANCE,))
        request.reserved, request.promised = (), 0
