"""Decode iterations, on the groups that the scaling plan (step 4) asks for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from longspan.core.books.cluster import Instance
from longspan.core.books.request import Request
from longspan.core.costs.cost_model import CostModel
from longspan.core.decision import Decision
from longspan.core.policies.loongserve.scaling import (
    ABOUT_AS_FAST,
    best_masters,
    masters_at_home,
    num_masters_wanted,
    share_among_masters,
)
from longspan.core.policies.parts.decode_batch import choose_requests, run_decode, take_quota
from longspan.core.policies.parts.decode_groups import DecodeGroup, form_groups
from longspan.core.policies.parts.shortage import choose_victim, choose_victim_inside, relieve_shortage
from longspan.core.state import SchedulerState


@dataclass(frozen=True, slots=True)
class DecodeScaling:
    """The limits within which decode groups grow.

    per_master: requests on one master beyond which an iteration is compute-bound.
    scale_up: whether groups may get instances that they did not have. max_masters: in one batch.
    """

    cost_model: CostModel
    per_master: int
    scale_up: bool = True
    max_masters: int | None = None

    def masters_wanted(self, num_requests: int) -> int:
        wanted = num_masters_wanted(num_requests, self.per_master)
        return wanted if self.max_masters is None else min(wanted, self.max_masters)


def start_decodes(state: SchedulerState, scaling: DecodeScaling, held: Collection[int] = frozenset()) -> None:
    """Start an iteration for every group with room that is not held, preempting if nothing else makes room."""
    while True:
        groups, spare = form_groups(state, held)
        if not groups:
            return
        if scaling.scale_up:
            groups = relieve_shortage(groups, spare)
            _add_masters(groups, spare, scaling)
            victim = choose_victim(state, groups)
        else:
            victim = choose_victim_inside(groups)
        if victim is None:
            break
        state.explain(Decision("preempt", (victim.id,), state.placement.holders(victim.id)))
        state.preempt(victim.id)
    for group in groups:
        requests = choose_requests(group)
        if requests:
            _run(state, requests, group, scaling)


def _add_masters(groups: Sequence[DecodeGroup], spare: Iterator[Instance], scaling: DecodeScaling) -> None:
    """Scale up for compute: idle instances, as masters beside the present ones."""
    for group in groups:
        while len(group.instances) < scaling.masters_wanted(group.size) and (extra := next(spare, None)):
            group.add(extra)


def _run(state: SchedulerState, requests: Sequence[Request], group: DecodeGroup, scaling: DecodeScaling) -> None:
    if len(group.instances) == 1:
        run_decode(state, requests, [group.instances[0].id] * len(requests))
        return
    contexts = [dict(state.placement.context(request.id)) for request in requests]
    masters = _choose_masters(contexts, {instance.id: instance.unreserved for instance in group.instances}, scaling)
    _explain_scale_up(state, group, set(masters), scaling)
    run_decode(state, requests, masters)


def _choose_masters(
    contexts: Sequence[dict[int, int]], free: dict[int, int], scaling: DecodeScaling
) -> list[int]:
    """Every request's token where most of its KV is, if that is about as fast as sharing evenly; else evenly.

    So that requests stay on few instances, and groups small. contexts: instance -> tokens, of each request.
    """
    held: Counter[int] = Counter()
    for context in contexts:
        held.update(context)
    many, tokens = len(contexts), held.total()

    def iteration_s(masters: int) -> float:
        return scaling.cost_model.decode(many, tokens, len(free), masters)

    most = min(many, len(free), scaling.max_masters or len(free))
    number = best_masters(iteration_s, min(scaling.masters_wanted(many), most), most)
    at_home = masters_at_home(contexts, free)
    if at_home is not None:
        load = Counter(at_home)
        # The fullest master sets the pace, as if all had as much.
        evenly = many // max(load.values())
        if len(load) <= most and iteration_s(evenly) <= ABOUT_AS_FAST * iteration_s(number):
            return at_home
    quotas = share_among_masters(many, free, held, number)
    return [take_quota(context, quotas) for context in contexts]


def _explain_scale_up(
    state: SchedulerState, group: DecodeGroup, masters: Collection[int], scaling: DecodeScaling
) -> None:
    if joining := tuple(sorted(instance.id for instance in group.added if instance.id in masters)):
        ids = tuple(request.id for request in group.requests)
        left = group.room - sum(instance.unreserved for instance in group.added)
        reasons = {"requests": len(ids), "per_master": scaling.per_master, "slots_left": left}
        state.explain(Decision("scale up", ids, joining, reasons))
