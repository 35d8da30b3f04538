"""Prefill: which requests are admitted, on how many instances, and where the new KV will live."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from longspan.core.books.cluster import Instance
from longspan.core.books.request import Request
from longspan.core.policies.parts.prefill_batch import keep_compactly, run_prefill
from longspan.core.state import SchedulerState


def start_prefills(state: SchedulerState) -> bool:
    """Start prefills in order of arrival while idle instances hold them.

    Returns whether the head of the queue waits for decoding instances to come back: then nothing else may
    start on the idle ones, or they would never be idle at the same time. It lasts for what is issued already,
    one or two iterations, since nothing looks ahead while a request waits that could run.
    """
    while state.waiting:
        idle = state.cluster.idle()
        if _should_wait(state, state.waiting.first, idle, state.cluster.decoding()):
            return True
        if not idle or not _fit(state, [state.waiting.first], idle):
            return False
        requests = _gather(state, idle)
        group = _choose_group(state, requests, idle)
        plan = _plan_retention(state, requests, group)
        run_prefill(state, requests, [instance.id for instance in group], plan)
    return False


def _should_wait(state: SchedulerState, head: Request, idle: Sequence[Instance], decoding: Sequence[Instance]) -> bool:
    """Whether the head needs, or can use, instances that will soon come back.

    Never for instances busy with a prefill or a migration: that may take long.
    """
    if not idle or not decoding or not _fit(state, [head], (*idle, *decoding)):
        return False
    useful = _useful_instances(state, head.tokens_to_compute, len(idle) + len(decoding))
    return useful > len(idle) or not _fit(state, [head], idle)


def _useful_instances(state: SchedulerState, tokens: int, available: int) -> int:
    """The degree of parallelism that gives each instance enough to do."""
    return min(available, max(1, tokens // state.config.min_tokens_per_instance))


def _need(state: SchedulerState, request: Request) -> int:
    """Slots for its tokens, and for the first ones to come."""
    return request.slots_to_take + state.headroom(request)


def _fit(state: SchedulerState, requests: Iterable[Request], instances: Iterable[Instance]) -> bool:
    """Only the total counts: KV may be split anywhere. What was promised to running requests is kept."""
    return sum(_need(state, request) for request in requests) <= sum(instance.room for instance in instances)


def _gather(state: SchedulerState, idle: Sequence[Instance]) -> list[Request]:
    """The head and those behind it that go along in one batch. A head longer than the limit runs alone."""
    requests = [state.waiting.first]
    tokens, need = requests[0].tokens_to_compute, _need(state, requests[0])
    room = sum(instance.room for instance in idle)
    for request in state.waiting.after_first():
        tokens += request.tokens_to_compute
        need += _need(state, request)
        limit = state.config.max_batch_tokens * _useful_instances(state, tokens, len(idle))
        if tokens > limit or need > room:
            break
        requests.append(request)
    return requests


def _choose_group(state: SchedulerState, requests: Sequence[Request], idle: Sequence[Instance]) -> list[Instance]:
    """As many instances as are useful, the emptiest; more if only more of them have the room."""
    emptiest = sorted(idle, key=lambda instance: (-instance.room, instance.id))
    tokens = sum(request.num_tokens for request in requests)
    need = sum(_need(state, request) for request in requests)
    size = _useful_instances(state, tokens, len(idle))
    while size < len(idle) and sum(max(0, instance.room) for instance in emptiest[:size]) < need:
        size += 1
    return sorted(emptiest[:size], key=lambda instance: instance.id)


def _plan_retention(
    state: SchedulerState, requests: Sequence[Request], group: Sequence[Instance]
) -> dict[str, list[tuple[int, int]]]:
    """Request -> (instance, tokens) in token order.

    Each request goes whole to the emptiest instance, so that the batch scatters and then decodes without
    exchange. One that no instance can hold is split over the fewest that do, evenly, so that they share its
    attention. Longest first: the big ones find the big rooms.
    """
    rooms = {instance.id: max(0, instance.room) for instance in group}
    plan: dict[str, list[tuple[int, int]]] = {}
    for request in sorted(requests, key=lambda request: (-request.tokens_to_compute, request.arrival_index)):
        plan[request.id] = keep_compactly(request.tokens_to_compute, state.headroom(request), rooms)
    return plan
