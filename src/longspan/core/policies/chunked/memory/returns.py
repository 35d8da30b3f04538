"""How long a prompt waits for busy instances that hold its prefix, or compute it."""

from __future__ import annotations

from collections.abc import Collection, Set

from longspan.core.actions import RunBatch
from longspan.core.books.request import Request, RequestStatus
from longspan.core.policies.chunked.iteration import Iteration
from longspan.core.state import SchedulerState


class Returns:
    """When they take another batch, as predictions go: looked up once for each decision."""

    def __init__(self, state: SchedulerState, iteration: Iteration) -> None:
        self._state = state
        self._iteration = iteration
        self._known: dict[int, float] = {}

    def wait(
        self, instances: Collection[int], able: Set[int], coming: tuple[Request, int] | None = None
    ) -> float:
        """Return the seconds by which its first chunk ends later for waiting for all of these.

        able: those that have time for it now. coming: who computes so many of its tokens there; if these are not on
        their way yet, or nothing tells how long it takes, that is an iteration's target.
        """
        target_s = self._iteration.predictor.target()
        if coming is not None and not _is_under_way(*coming):
            return target_s
        return max([self._wait(number) for number in instances if number not in able], default=target_s)

    def _wait(self, number: int) -> float:
        found = self._known.get(number)
        if found is None:
            found = self._known[number] = self._predicted(number)
        return found

    def _predicted(self, number: int) -> float:
        """An instance where a prompt goes on afterwards has perhaps no time for another's chunk: so it takes an
        iteration more, or whatever is left of this one."""
        state, predictor = self._state, self._iteration.predictor
        instance = state.cluster[number]
        running = None if instance.running is None else instance.running.action
        if state.config.pp > 1 or not isinstance(running, RunBatch) or self._goes_on(number, running):
            return predictor.target()
        names = set(state.going_on([segment.request_id for segment in running.segments]))
        context = sum([segment.end for segment in running.segments if segment.request_id in names])
        alike = int(instance.queued is not None)
        return predictor.wait(running, alike, len(names), context, self._iteration.now)

    def _goes_on(self, number: int, running: RunBatch) -> bool:
        """Tell whether a prompt goes on there after the batch."""
        if not all([segment.emits for segment in running.segments]):
            return True
        ready = self._state.cluster[number].ready.values()
        return any([request.status is RequestStatus.PREFILLING for request in ready])


def _is_under_way(other: Request, tokens: int) -> bool:
    """Tell whether batches in flight compute all of so many tokens."""
    return other.in_flight > 0 and other.num_stored >= tokens
