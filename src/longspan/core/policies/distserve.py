"""DistServe: prefill and decode on instances of their own (arXiv 2401.09670)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from longspan.config import check_count
from longspan.core.books.cluster import Instance
from longspan.core.books.request import Request
from longspan.core.decision import Decision
from longspan.core.news import News
from longspan.core.policies.base import Policy
from longspan.core.policies.one_instance import StaticTP
from longspan.core.policies.parts.decode_batch import decode_each
from longspan.core.policies.parts.prefill_batch import run_prefill
from longspan.core.policies.parts.refusal import refuse_the_too_long
from longspan.core.state import SchedulerState
from longspan.errors import ConfigError


class DistServe(Policy):
    """The first instances prefill, the rest decode; in between the KV migrates.

    Prefill: whole prompts, first come first served, a batch on one instance. A request whose prompt is done stays
    there, and takes slots, until a decode instance has room for it (the paper's "pull"); strictly in order of arrival,
    so that room comes together for a long one. The decode instance with most room takes it. There each instance decodes
    all that it has; when slots run out, its latest request is preempted, and begins again with a prefill.

    A migration needs both instances idle. An idle decode instance takes the request that has waited longer, for its KV
    to move or for its next token. A prefill instance whose request could move waits for the target's iteration to end;
    one whose request finds no room anywhere goes on with the next prompts.

    One instance alone does both, as `static_tp`. A request that an instance cannot hold is refused.
    """

    @dataclass(frozen=True)
    class Options(Policy.Options):
        """prefill_instances: how many of them prefill; None is one half, rounded down."""

        prefill_instances: int | None = None

        def __post_init__(self) -> None:
            if self.prefill_instances is not None:
                check_count("prefill_instances", self.prefill_instances)

    name = "distserve"
    keeps_on_one_instance = True
    options: Options

    def __init__(self, **options: object) -> None:
        super().__init__(**options)
        self._both = StaticTP()
        self._both.adopts = False  # for each may have to move by itself once there are several instances again

    def schedule(self, state: SchedulerState, news: News, now: float) -> None:
        if len(state.cluster) == 1:
            self._both.schedule(state, news, now)
            return
        refuse_the_too_long(state, news)
        prefill, decode = self._pools(state)
        held = _hand_over(state, prefill, decode)
        _prefill(state, [instance for instance in prefill if instance.is_idle and instance.id not in held])
        decode_each(state, held=[instance.id for instance in prefill])

    def _pools(self, state: SchedulerState) -> tuple[Sequence[Instance], Sequence[Instance]]:
        instances = state.cluster.instances
        chosen = self.options.prefill_instances
        count = len(instances) // 2 if chosen is None else chosen
        if len(instances) < state.config.num_instances:  # some are lost
            count = min(count, len(instances) - 1)
        if not 0 < count < len(instances):
            raise ConfigError(f"{count} of {len(instances)} instances are to prefill: each phase needs at least one")
        return instances[:count], instances[count:]


def _hand_over(state: SchedulerState, prefill: Sequence[Instance], decode: Sequence[Instance]) -> set[int]:
    """Start the migrations that can start now. Returns prefill instances that wait for a target to come back."""
    rooms = {instance.id: instance.room for instance in decode}
    held: set[int] = set()
    for request, source in _prefilled(prefill):
        need = request.num_tokens + state.headroom(request)
        able = [instance for instance in decode if rooms[instance.id] >= need]
        if not able:
            break
        target = max(able, key=lambda instance: (instance.is_idle, rooms[instance.id], -instance.id))
        rooms[target.id] -= need
        if not source.is_idle:
            continue
        if target.is_idle and _has_waited_longer(request, target):
            state.explain(Decision("hand over", (request.id,), (source.id, target.id)))
            state.migrate(request.id, source.id, target.id, [(0, request.num_stored)])
        else:
            held.add(source.id)
    return held


def _prefilled(prefill: Sequence[Instance]) -> list[tuple[Request, Instance]]:
    """Requests whose prompt is done, by arrival; all ready ones, for prompts are not chunked."""
    found = [(request, instance) for instance in prefill for request in instance.ready.values()]
    return sorted(found, key=lambda pair: pair[0].arrival_index)


def _has_waited_longer(request: Request, target: Instance) -> bool:
    """Than all that could decode on the target; then it goes first, and they have their turn after it."""
    longest_ready = next(iter(target.ready.values()), None)
    return longest_ready is None or request.ready_order < longest_ready.ready_order


def _prefill(state: SchedulerState, idle: Sequence[Instance]) -> None:
    """The head of the queue to the emptiest, and so on."""
    for instance in sorted(idle, key=lambda instance: (-instance.unreserved, instance.id)):
        prompts = _gather(state, instance)
        if prompts:
            kept = {request.id: [(instance.id, request.tokens_to_compute)] for request in prompts}
            run_prefill(state, prompts, [instance.id], kept)


def _gather(state: SchedulerState, instance: Instance) -> list[Request]:
    """The queue's first that fit into the instance and one batch; without room to grow, for they grow elsewhere."""
    gathered: list[Request] = []
    tokens = 0
    for request in state.waiting:
        tokens += request.tokens_to_compute
        if tokens > instance.unreserved or (gathered and tokens > state.config.max_batch_tokens):
            break
        if len(gathered) == state.config.max_batch_requests:
            break
        gathered.append(request)
    return gathered
