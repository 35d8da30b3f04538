"""Which requests prefill, first things first, however many wait."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from math import inf

import numpy as np
from numpy.typing import NDArray

from longspan.core.books.request import Request
from longspan.core.policies.chunked.priority import Floats, Standing
from longspan.core.state import SchedulerState

_WIDTH = 9
_NOBODY = np.empty(0, dtype=np.intp)

Stand = Callable[[Request], Standing[float]]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A request that waits or prefills, and how it stands now. key: candidates are ranked by it."""

    request: Request
    standing: Standing[float]
    key: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Ranking:
    """The prompts by rank.

    ready: those whose prefill can go on, in order of rank. queue: those that wait, in any order; `order` has their
    places by rank.
    """

    ready: Sequence[Candidate]
    queue: Sequence[Request]
    order: NDArray[np.intp]
    candidate: Callable[[Request], Candidate]

    def waiting(self) -> Iterator[Candidate]:
        """Yield the waiting in order of rank, made one by one: few of a long queue are ever looked at."""
        return (self.candidate(self.queue[place]) for place in self.order)


class Backlog:
    """The waiting requests in columns, so that a thousand are ranked as fast as a few.

    Only the time changes in how a request stands while it waits. So its column is made when it comes, and kept until it
    leaves. It cannot leave and come back unnoticed: `follow` is called at every decision, and a request that has left
    with one comes back with another.
    """

    def __init__(self, by_priority: bool = True) -> None:
        """Make an empty one. by_priority: whether a higher priority goes before any rule."""
        self.by_priority = by_priority
        self.queue: list[Request] = []
        self._changes = 0
        self._columns = np.empty((_WIDTH, 0))

    def follow(self, state: SchedulerState, stand: Stand) -> None:
        """Be about the requests that wait now."""
        if self._changes == state.waiting.changes:
            return
        self._changes = state.waiting.changes
        places = {request: place for place, request in enumerate(self.queue)}
        self.queue = list(state.waiting)
        new = [request for request in self.queue if request not in places]
        places.update(zip(new, count(len(places)), strict=False))
        columns = np.array([_column(state, request, stand(request)) for request in new]).reshape(-1, _WIDTH).T
        order = [places[request] for request in self.queue]
        self._columns = np.concatenate((self._columns, columns), axis=1)[:, order]

    def least_need(self) -> float:
        """Return the slots that the smallest one needs, headroom included; infinite if none waits."""
        return float(self._columns[-1].min()) if self.queue else inf

    def total_s(self) -> float:
        """Return the predicted seconds of all prefills that wait, each alone."""
        return float(self._columns[2].sum())

    def order(self, now: float, rule: Callable[[Standing[Floats]], Floats]) -> NDArray[np.intp]:
        """Return places in the queue by priority, rule and arrival."""
        if not self.queue:
            return _NOBODY
        arrived, deadline_s, total_s, scale_s, tag, place, index, priority, _ = self._columns
        standing = Standing(now, arrived, deadline_s, total_s, total_s, scale_s, tag, place)
        keys = (index, rule(standing))
        return np.lexsort((*keys, -priority) if self.by_priority else keys)


def _column(state: SchedulerState, request: Request, standing: Standing[float]) -> tuple[float, ...]:
    need = request.slots_to_take + state.headroom(request)
    priority = request.service.priority
    return (
        standing.arrived, standing.deadline_s, standing.total_s, standing.scale_s, standing.tag, standing.place,
        request.arrival_index, priority, need,
    )  # fmt: skip
