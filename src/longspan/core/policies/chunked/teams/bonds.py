"""Who is waited for: the prompts that bind idle instances to busy ones, since they shall run on all of them next."""

from __future__ import annotations

from operator import attrgetter

from longspan.core.actions import RunBatch
from longspan.core.books.request import Request
from longspan.core.policies.chunked.memory.kvp import span
from longspan.core.policies.chunked.memory.pool_shares import PoolShares, PoolUse
from longspan.core.policies.chunked.ranking import Candidate, Ranking
from longspan.core.policies.chunked.teams.width import Team, Width
from longspan.core.state import SchedulerState


def goes_on_next(state: SchedulerState, ranking: Ranking) -> list[Request]:
    """Return the prompts that go on next where they are, each the highest in rank on all of its instances.

    Those below one that is being computed, and goes on before them on an instance of theirs, are not waited for; nor
    are those below who waits to start.
    """
    candidates = list(ranking.ready)
    if any([len(span(state, candidate.request)) > 1 for candidate in candidates]):
        candidates += [ranking.candidate(request) for request in _being_computed(state)]
        candidates.sort(key=attrgetter("key"))
    first_waiting = ranking.first_waiting
    claimed: set[int] = set()
    found = []
    for candidate in candidates:
        if first_waiting is not None and first_waiting.key < candidate.key:
            break
        instances = span(state, candidate.request)
        if claimed.isdisjoint(instances):
            claimed.update(instances)
            if candidate.request.can_run:
                found.append(candidate.request)
    return found


def team_to_come(state: SchedulerState, ranking: Ranking, width: Width, shares: PoolShares) -> list[Team]:
    """Return the team that the first in rank waits for, if it is one that has not begun."""
    first = _next_to_start(ranking)
    if first is None:
        return []
    rooms = {instance.id: instance.room for instance in state.cluster.instances}
    need = state.need(first.request)
    team = width.choose(first, rooms)
    has_room = sum([max(0, rooms[number]) for number in team]) >= need
    return [team] if team and has_room and PoolUse(state, shares).admits(first.request, need) else []


def prefix_to_come(state: SchedulerState, ranking: Ranking) -> list[tuple[int, ...]]:
    """Return the instances that hold the prefix of the first in rank, if it is one that has not begun."""
    first = _next_to_start(ranking)
    if first is None or not first.request.prefix_keys:
        return []
    holders = tuple(sorted(state.cached_on(first.request)))
    return [holders] if len(holders) > 1 else []


def _next_to_start(ranking: Ranking) -> Candidate | None:
    """Return the first in rank, if it has not begun."""
    first = ranking.first_waiting
    return None if first is None or (ranking.ready and ranking.ready[0].key < first.key) else first


def _being_computed(state: SchedulerState) -> list[Request]:
    """Return the prompts of which a chunk is being computed that is not the last."""
    running = dict.fromkeys([instance.running for instance in state.cluster.instances])  # each once
    found = {
        segment.request_id: None
        for work in running
        if work is not None and isinstance(work.action, RunBatch) and not work.is_decode
        for segment in work.action.segments
        if not segment.emits
    }
    return [request for name in found if (request := state.request(name)).end_reason is None]
