"""Prefill: which requests are admitted, on how many instances, and where the new KV will live."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from longspan.core.books.cluster import Instance
from longspan.core.books.request import Request
from longspan.core.policies.parts.adoption import adopt_each, waits_for_prefix, with_prefix_first
from longspan.core.policies.parts.prefill_batch import keep_compactly, run_prefill
from longspan.core.prefixes.coming import Coming
from longspan.core.state import SchedulerState

_MOST_PASSED_OVER = 64
"""Requests that wait for their prefix, before no more are looked at: the queue may be long."""


def start_prefills(state: SchedulerState) -> bool:
    """Start prefills in order of arrival while idle instances hold them.

    Returns whether the head of the queue waits for decoding instances to come back: then nothing else may
    start on the idle ones, or they would never be idle at the same time. It lasts for what is issued already,
    one or two iterations, since nothing looks ahead while a request waits that could run. Who waits for its prefix is
    passed over, and keeps its place.
    """
    while state.waiting and (idle := [instance for instance in state.cluster.idle() if not instance.is_leaving]):
        beginning = Coming(state.config.prefix_block)
        queue = _able(state, idle, beginning)
        head = next(queue, None)
        if head is None:
            return False
        if _should_wait(state, head, idle, state.cluster.decoding()):
            return True
        if not _fit(state, [head], idle):
            return False
        requests = _gather(state, head, queue, idle, beginning)
        group = _choose_group(state, requests, idle)
        ring = [instance.id for instance in group]
        adopt_each(state, requests, ring)
        run_prefill(state, requests, ring, _plan_retention(state, requests, group))
    return False


def _able(state: SchedulerState, idle: Sequence[Instance], beginning: Coming) -> Iterator[Request]:
    """The queue without those that wait for their prefix; once many do, no more are looked at."""
    numbers, passed_over = frozenset([instance.id for instance in idle]), 0
    for request in state.waiting:
        if not waits_for_prefix(state, request, numbers, beginning):
            yield request
            continue
        passed_over += 1
        if passed_over == _MOST_PASSED_OVER:
            return


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


def _need(state: SchedulerState, requests: Iterable[Request], instances: Sequence[Instance]) -> int:
    """Slots of these instances for their tokens, and for the first ones to come."""
    numbers = [instance.id for instance in instances]
    return sum([state.need(request, numbers) for request in requests])


def _fit(state: SchedulerState, requests: Iterable[Request], instances: Sequence[Instance]) -> bool:
    """Only the total counts: KV may be split anywhere. What was promised to running requests is kept."""
    return _need(state, requests, instances) <= sum(instance.room for instance in instances)


def _gather(
    state: SchedulerState, head: Request, queue: Iterator[Request], idle: Sequence[Instance], beginning: Coming
) -> list[Request]:
    """The head and those behind it that go along in one batch. A head longer than the limit runs alone.

    queue: those behind it, without who waits for what those in `beginning` compute, which the batch's are noted in.
    """
    requests = [head]
    tokens, need = head.tokens_to_compute, _need(state, requests, idle)
    room = sum(instance.room for instance in idle)
    _note(state, head, beginning)
    for request in queue:
        tokens += request.tokens_to_compute
        need += _need(state, [request], idle)
        limit = state.config.max_batch_tokens * _useful_instances(state, tokens, len(idle))
        if tokens > limit or need > room:
            break
        requests.append(request)
        _note(state, request, beginning)
    return requests


def _note(state: SchedulerState, request: Request, beginning: Coming) -> None:
    if request.prefix_keys:
        beginning.note(request, state.cached(request))


def _choose_group(state: SchedulerState, requests: Sequence[Request], idle: Sequence[Instance]) -> list[Instance]:
    """As many instances as are useful, those with the first request's prefix, then the emptiest; more if only more of
    them have the room."""
    emptiest = sorted(idle, key=lambda instance: (-instance.room, instance.id))
    emptiest = with_prefix_first(state, requests[0], emptiest)
    tokens = sum(request.num_tokens for request in requests)
    size = _useful_instances(state, tokens, len(idle))
    while size < len(idle):
        some = emptiest[:size]
        if sum(max(0, instance.room) for instance in some) >= _need(state, requests, some):
            break
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
