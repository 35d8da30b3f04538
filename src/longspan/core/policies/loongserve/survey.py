"""What the steps decide about: prompts that wait, instances that are free, decode batches that could make room.

Plain data, taken from the state at one moment. The steps read nothing else.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from longspan.core.actions import RunBatch
from longspan.core.books.request import Request, RequestStatus
from longspan.core.policies.parts.connected import connect
from longspan.core.policies.parts.decode_groups import find_candidates
from longspan.core.policies.parts.predictions import OutputLengths
from longspan.core.state import SchedulerState


class Prompt(NamedTuple):
    """A waiting request. need: slots for its tokens, and for the first ones to come."""

    id: str
    tokens: int
    need: int


@dataclass(slots=True, eq=False)
class DecodeBatch:
    """Requests that decode together: B_i, on instances G_i.

    rooms: slots of each of its instances that no request counts on. used: slots taken there, or promised.
    iteration_s: predicted seconds of one iteration. is_running: it has one to finish first.
    """

    requests: tuple[Request, ...]
    rooms: dict[int, int]
    used: dict[int, int]
    iteration_s: float
    is_running: bool
    lengths: OutputLengths
    _left: list[int] | None = None

    @property
    def left(self) -> list[int]:
        """Tokens that each request will still generate, as expected; worked out when they are first asked for."""
        if self._left is None:
            self._left = list(map(self.lengths.left, self.requests))
        return self._left

    @property
    def left_s(self) -> float:
        """Seconds until its last request ends, as expected: (AvgLat_d - min exec_time)+ of equation 2."""
        return max(self.left, default=0) * self.iteration_s

    def lateness(self, pause_s: float) -> float:
        """Return how much later each token is after a pause, all requests together: the cost in equation 1."""
        each = zip(self.requests, self.left, strict=True)
        return sum([pause_s / (request.num_output_tokens + left) for request, left in each])


@dataclass(frozen=True)
class Survey:
    """The instances and decode batches that a decision finds.

    free: room of each idle instance that no request can decode on. find_batches: what `batches` are worked out with,
    when they are first asked for; that must be before anything changes.
    """

    free: dict[int, int]
    find_batches: Callable[[], Sequence[DecodeBatch]]

    @cached_property
    def batches(self) -> Sequence[DecodeBatch]:
        """Those at rest before those that run, and those with most room first."""
        return self.find_batches()


def survey(state: SchedulerState, lengths: OutputLengths, before: int) -> Survey:
    """Look at the instances and the decode batches on them.

    before: of the running batches only those with a lower number count: these may be waited for.
    """
    running = _running_decodes(state, before)
    soon = {number for batch in running for number in batch.group}
    unavailable = state.cluster.engaged
    if len(soon) < len(state.cluster.decoding()):
        unavailable = unavailable | {i.id for i in state.cluster.decoding() if i.id not in soon}
    at_rest = find_candidates(state, state.cluster.resting(), unavailable)
    occupied = {number for holders in at_rest.values() for number in holders}
    free = {instance.id: max(0, instance.room) for instance in state.cluster.idle() if instance.id not in occupied}
    return Survey(free, lambda: _decode_batches(state, lengths, at_rest, running))


def _running_decodes(state: SchedulerState, before: int) -> list[RunBatch]:
    found = {}
    for instance in state.cluster.decoding():
        assert instance.running is not None
        action = instance.running.action
        if isinstance(action, RunBatch) and action.batch_id < before:
            found[action.batch_id] = action
    return list(found.values())


def _decode_batches(
    state: SchedulerState,
    lengths: OutputLengths,
    at_rest: Mapping[Request, tuple[int, ...]],
    running: Sequence[RunBatch],
) -> list[DecodeBatch]:
    """What is at rest or runs on connected instances goes on as one batch."""
    leader = connect([*at_rest.values(), *(batch.group for batch in running)])
    requests: defaultdict[int, list[Request]] = defaultdict(list)
    numbers: defaultdict[int, set[int]] = defaultdict(set)
    for request, holders in at_rest.items():
        requests[leader[holders[0]]].append(request)
        numbers[leader[holders[0]]].update(holders)
    for batch in running:
        lead = leader[batch.group[0]]
        for segment in batch.segments:
            request = state.request(segment.request_id)
            if request.status is not RequestStatus.DRAINING:
                requests[lead].append(request)
        numbers[lead].update(batch.group)
    soon = {leader[batch.group[0]] for batch in running}
    batches = [
        _decode_batch(state, lengths, requests[lead], sorted(numbers[lead]), lead in soon) for lead in numbers
    ]
    batches.sort(key=lambda batch: (batch.is_running, -sum(batch.rooms.values()), tuple(batch.rooms)))
    return batches


def _decode_batch(
    state: SchedulerState, lengths: OutputLengths, requests: Sequence[Request], numbers: Sequence[int], is_running: bool
) -> DecodeBatch:
    instances = [state.cluster[number] for number in numbers]
    context = sum([instance.used for instance in instances])
    return DecodeBatch(
        tuple(requests),
        {instance.id: max(0, instance.room) for instance in instances},
        {instance.id: instance.used + instance.promised for instance in instances},
        state.cost_model.decode(len(requests), context, len(instances), 1),
        is_running,
        lengths,
    )
