"""Moving KV: to empty an instance, or to scale down afterwards. One migration at a time for each instance."""

from __future__ import annotations

from collections.abc import Collection

from longspan.core.books.request import Request
from longspan.core.policies.loongserve.scaling import fewest_instances
from longspan.core.state import SchedulerState


def empty(state: SchedulerState, sources: Collection[int], targets: Collection[int]) -> None:
    """Start what can start now of moving all ready requests' KV from `sources` to `targets`.

    To be called again whenever one is through: each occupies both its instances, and what one target has no
    room for goes to another.
    """
    for source in sources:
        instance = state.cluster[source]
        if not instance.is_idle or not instance.ready:
            continue
        request = next(iter(instance.ready.values()))
        able = [n for n in targets if n not in sources and state.cluster[n].is_idle and state.cluster[n].room > 0]
        if able:
            held = state.placement.counts(request.id)
            target = max(able, key=lambda n: (min(state.cluster[n].room, held[source]), held.get(n, 0), -n))
            _move(state, request, source, target, state.cluster[target].room)


def scale_down_afterwards(state: SchedulerState, held: Collection[int]) -> None:
    """Scale down reactively: each request that was just prefilled moves to the fewest of its instances that hold it.

    Only before its first decode iteration, or scaling up and down would alternate. Each migration empties one of
    its instances, so it ends. What other requests use too stays where it is, or two would move it to and fro. held:
    instances to leave alone.
    """
    for instance in state.cluster.idle():
        for request in list(instance.ready.values()):
            holders = state.placement.holders(request.id)
            is_due = request.num_output_tokens == 1 and len(holders) > 1 and not set(holders) & set(held)
            if is_due and not state.is_shared(request):
                _move_together(state, request, holders)


def _move_together(state: SchedulerState, request: Request, holders: Collection[int]) -> None:
    if not request.is_ready or not all(state.cluster[number].is_idle for number in holders):
        return
    held = state.placement.counts(request.id)
    rooms = {number: max(0, state.cluster[number].room) + held[number] for number in holders}
    keepers = fewest_instances(request.num_tokens + state.headroom(request), rooms)
    for source in sorted(set(holders).difference(keepers), key=lambda number: held[number]):
        for target in keepers:
            if state.cluster[target].room >= held[source]:
                _move(state, request, source, target, held[source])
                return


def _move(state: SchedulerState, request: Request, source: int, target: int, most: int) -> None:
    """Move the request's first tokens at `source`, `most` at most."""
    ranges = []
    for start, end in state.placement.held(request.id, source):
        if most > 0:
            end = min(end, start + most)
            ranges.append((start, end))
            most -= end - start
    state.migrate(request.id, source, target, ranges)
