"""Adoption: requests that are about to run take over the KV of their prefixes, where it is at hand."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from longspan.core.books.cluster import Instance
from longspan.core.books.request import Request
from longspan.core.prefixes.coming import Coming
from longspan.core.state import SchedulerState


def adopt_each(state: SchedulerState, requests: Iterable[Request], instances: Collection[int]) -> None:
    """Let each of these waiting requests, in order, take over what the instances have of its prefix."""
    for request in requests:
        if request.prefix_keys:
            state.adopt(request, instances)


def with_prefix_first(state: SchedulerState, request: Request, instances: Iterable[Instance]) -> list[Instance]:
    """Return the instances, those first that hold more of the request's longest prefix; else in their order."""
    instances = list(instances)
    held = state.cached_on(request, [instance.id for instance in instances]) if request.prefix_keys else {}
    return sorted(instances, key=lambda instance: -held.get(instance.id, 0)) if held else instances


def waits_for_prefix(state: SchedulerState, request: Request, idle: frozenset[int], beginning: Coming) -> bool:
    """Tell whether a waiting request had better wait for its prefix, which would be most of what it lacks.

    That is so where instances have it that decode, or are soon back from a repair; or where another computes it, or
    computes it again after a loss, and hardly more. idle: where it could begin. beginning: who is to run beside it.
    """
    if not request.prefix_keys:
        return False
    held, now = state.cached_on(request), state.cached(request, idle)
    cached, lacking = sum(held.values()), request.num_tokens - now
    if 2 * (cached - now) >= lacking and all([_comes_back(state.cluster[number]) for number in held.keys() - idle]):
        return True
    found = state.coming(request) or beginning.find(request)
    if found is None:
        return False
    other, there = found
    left = other.num_tokens - max(cached, other.num_computed)
    return 2 * (there - now) >= lacking and 2 * (there - cached) >= left


def _comes_back(instance: Instance) -> bool:
    """Whether it is idle again soon, and may be begun on then."""
    running = instance.running
    return not instance.is_leaving and (running is None or running.is_decode or running.is_repair)
