"""Gathering: what a team has computed comes together on one instance, so that its decodes bind no others."""

from __future__ import annotations

from longspan.core.books.request import RequestStatus
from longspan.core.policies.chunked.teams.width import Width, gathering_place
from longspan.core.state import SchedulerState


def gather(state: SchedulerState, width: Width) -> None:
    """Move a shard of each request that a team has computed to where the most of it is, if both instances are idle.

    What other requests use too stays where it is, or two would move it to and fro.
    """
    for request in [state.request(request_id) for request_id in width.wide]:
        if request.status is not RequestStatus.DECODING or not request.is_ready:
            continue
        holders = state.placement.holders(request.id)
        may_move = len(holders) > 1 and not state.is_shared(request)
        target = gathering_place(state, request) if may_move else None
        if target is None:
            width.end(request)
            continue
        if not state.cluster[target].is_idle:
            continue
        for source in holders:
            if source != target and state.cluster[source].is_idle:
                state.migrate(request.id, source, target, state.placement.held(request.id, source))
                break
