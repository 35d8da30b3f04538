"""The baseline `static_sp`: all instances always one group. LoongServe's TP2SP4, and any fixed ring."""

from __future__ import annotations

from longspan.core.books.request import Request, RequestStatus
from longspan.core.news import News
from longspan.core.policies.base import Policy
from longspan.core.policies.parts.adoption import adopt_each
from longspan.core.policies.parts.decode_batch import choose_requests, run_decode, take_quota
from longspan.core.policies.parts.decode_groups import DecodeGroup
from longspan.core.policies.parts.patience import somebody_is_overdue
from longspan.core.policies.parts.prefill_batch import keep_evenly, run_prefill
from longspan.core.policies.parts.sharing import share_evenly
from longspan.core.state import SchedulerState


class StaticSP(Policy):
    """One batch at a time, on all instances: a prefill if the head of the queue has room, else a decode iteration.

    First come first served; an overdue decode goes before prefills; when the pool is full, the latest is preempted.
    """

    name = "static_sp"

    def schedule(self, state: SchedulerState, news: News, now: float) -> None:
        if len(state.cluster.idle()) < len(state.cluster):
            return
        prompts = [] if somebody_is_overdue(state) else _gather(state)
        if prompts:
            _prefill(state, prompts)
        else:
            _decode(state)


def _gather(state: SchedulerState) -> list[Request]:
    """The head of the queue and those behind it that fit into the same batch and the pool."""
    gathered: list[Request] = []
    able = [instance for instance in state.cluster.instances if not instance.is_leaving]
    room, numbers = sum(instance.room for instance in able), [instance.id for instance in able]
    tokens = 0
    for request in state.waiting:
        room -= state.need(request, numbers)
        tokens += request.tokens_to_compute
        if room < 0 or (gathered and tokens > state.config.max_batch_tokens * len(state.cluster)):
            break
        gathered.append(request)
    return gathered


def _prefill(state: SchedulerState, prompts: list[Request]) -> None:
    instances = [instance for instance in state.cluster.instances if not instance.is_leaving]
    adopt_each(state, prompts, [instance.id for instance in instances])
    rooms = {instance.id: instance.unreserved for instance in instances}
    kept = {request.id: keep_evenly(request.tokens_to_compute, rooms) for request in prompts}
    run_prefill(state, prompts, list(rooms), kept)


def _decode(state: SchedulerState) -> None:
    """All who are ready, each token computed and kept by another instance in turn."""
    while True:
        ready = {r.id: r for instance in state.cluster.instances for r in instance.ready.values()}
        requests = [request for request in ready.values() if request.status is RequestStatus.DECODING]
        group = DecodeGroup(requests, list(state.cluster.instances), state.config.max_batch_requests)
        if not requests or group.room > 0 or group.is_awaited:
            break
        state.preempt(max(requests, key=lambda request: request.arrival_index).id)
    chosen = choose_requests(group)
    if chosen:
        numbers = [instance.id for instance in group.instances]
        shares = share_evenly(len(chosen), [instance.unreserved for instance in group.instances])
        quotas = dict(zip(numbers, shares, strict=True))
        masters = [take_quota(dict(state.placement.context(request.id)), quotas) for request in chosen]
        run_decode(state, chosen, masters)
