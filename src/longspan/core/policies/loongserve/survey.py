"""What the steps decide about: prompts that wait, instances that are free, decode batches that could make room.

Plain data, taken from the state at one moment. The steps read nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from longspan.core.actions import RunBatch
from longspan.core.policies.loongserve.predictions import OutputLengths
from longspan.core.policies.parts.decode_groups import connect, find_candidates
from longspan.core.request import Request, RequestStatus
from longspan.core.state import SchedulerState


class Prompt(NamedTuple):
    """A waiting request. need: slots for its tokens, and for the first ones to come."""

    id: str
    tokens: int
    need: int


@dataclass(frozen=True, slots=True)
class DecodeBatch:
    """Requests that decode together: B_i, on instances G_i.

    rooms: slots of each of its instances that nobody counts on. used: slots taken there, or promised.
    iteration_s: predicted seconds of one iteration. is_running: it has one to finish first.
    """

    requests: tuple[Request, ...]
    rooms: dict[int, int]
    used: dict[int, int]
    iteration_s: float
    is_running: bool
    lengths: OutputLengths

    @property
    def left_s(self) -> float:
        """Seconds until its last request ends, as expected: (AvgLat_d - min exec_time)+ of equation 2."""
        return max(map(self.lengths.left, self.requests), default=0) * self.iteration_s

    def lateness(self, pause_s: float) -> float:
        """How much later each of its tokens is after a pause, all requests together: the cost in equation 1."""
        return sum(pause_s / self.lengths.total(request) for request in self.requests)


@dataclass(frozen=True, slots=True)
class Survey:
    """free: room of each idle instance that nobody can decode on. batches: those at rest before those that run, and
    those with most room first."""

    free: dict[int, int]
    batches: tuple[DecodeBatch, ...]


def survey(state: SchedulerState, lengths: OutputLengths, before: int) -> Survey:
    """before: of the running decode batches only those with a lower number may be waited for; others do not count."""
    idle = {instance.id for instance in state.cluster.idle()}
    running = _running_decodes(state, before)
    soon = {number for batch in running for number in batch.group}
    members = dict(find_candidates(state, idle, soon))
    for batch in running:
        for segment in batch.segments:
            request = state.request(segment.request_id)
            if request.status is not RequestStatus.DRAINING:
                members[request] = batch.group
    leader = connect(len(state.cluster), [*members.values(), *(batch.group for batch in running)])
    requests: dict[int, list[Request]] = {leader[batch.group[0]]: [] for batch in running}
    occupied = set(soon)
    for request, holders in members.items():
        requests.setdefault(leader[holders[0]], []).append(request)
        occupied.update(holders)
    batches = [
        _decode_batch(state, lengths, those, [n for n in sorted(occupied) if leader[n] == lead], soon)
        for lead, those in requests.items()
    ]
    batches.sort(key=lambda batch: (batch.is_running, -sum(batch.rooms.values()), tuple(batch.rooms)))
    free = {number: max(0, state.cluster[number].room) for number in sorted(idle - occupied)}
    return Survey(free, tuple(batches))


def _running_decodes(state: SchedulerState, before: int) -> list[RunBatch]:
    found = {}
    for instance in state.cluster.decoding():
        assert instance.running is not None
        action = instance.running.action
        if isinstance(action, RunBatch) and action.batch_id < before:
            found[action.batch_id] = action
    return list(found.values())


def _decode_batch(
    state: SchedulerState,
    lengths: OutputLengths,
    requests: list[Request],
    numbers: list[int],
    soon: set[int],
) -> DecodeBatch:
    instances = [state.cluster[number] for number in numbers]
    context = sum(instance.used for instance in instances)
    return DecodeBatch(
        requests=tuple(requests),
        rooms={instance.id: max(0, instance.room) for instance in instances},
        used={instance.id: instance.used + instance.promised for instance in instances},
        iteration_s=state.cost_model.decode(len(requests), context, len(instances), 1),
        is_running=not soon.isdisjoint(numbers),
        lengths=lengths,
    )
