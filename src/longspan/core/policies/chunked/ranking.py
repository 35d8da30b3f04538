"""Which requests prefill, first things first, however many wait."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import inf
from operator import attrgetter

import numpy as np
from numpy.typing import NDArray

from longspan.core.books.request import Request
from longspan.core.policies.chunked.priority import Floats, Standing
from longspan.core.state import SchedulerState

_WIDTH = 13
NOWHERE = -1.0
_NEED, _HOME, _SAVED, _LEFT = 9, 10, 11, 12
_FIRST = 64  # places, doubled when they are taken
_NOBODY = np.empty(0, dtype=np.intp)
_ARRIVAL = attrgetter("arrival_index")

Stand = Callable[[Request], Standing[float]]
Saves = Callable[[int], float]
"""Seconds that a prompt's first tokens take to compute."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A request that waits or prefills, and how it stands now.

    key: candidates are ranked by it. queue_s: see `Homes`.
    """

    request: Request
    standing: Standing[float]
    key: tuple[float, ...]
    queue_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Homes:
    """Where those that wait have their prefixes, each by its place in the queue.

    home: the instance that has most of it, as far as that is known; or `NOWHERE`. saved_s: the predicted seconds that
    it saves there. queue_s: of work there, of those before it in rank that have theirs on the same instance.
    """

    home: Floats
    saved_s: Floats
    queue_s: Floats

    def wanted(self, places: NDArray[np.intp], near: Collection[int]) -> NDArray[np.intp]:
        """Return those of these places, in order, that are of interest as `Ranking.waiting` says."""
        leaves = self.queue_s[places] > self.saved_s[places]
        return places[leaves | np.isin(self.home[places], [NOWHERE, *near])]


@dataclass(frozen=True)
class Ranking:
    """The prompts by rank.

    ready: those whose prefill can go on, in order of rank. queue: those that wait, in any order; `order` has their
    places by rank. homes: finds those of who waits; None where nobody has a prefix anywhere.
    """

    ready: Sequence[Candidate]
    queue: Sequence[Request]
    order: NDArray[np.intp]
    homes: Callable[[], Homes | None]
    candidate: Callable[[Request], Candidate]

    @cached_property
    def first_waiting(self) -> Candidate | None:
        """The first in rank of those that wait; None if nobody does."""
        return self.candidate(self.queue[self.order[0]]) if len(self.order) else None

    def waiting(self, near: Callable[[], Collection[int] | None]) -> Iterator[Candidate]:
        """Yield the waiting in order of rank, made one by one: few of a long queue are ever looked at.

        near: where only those are of interest from now on that are at home on these instances, or nowhere, or had
        better begin elsewhere than wait for so many at home; None: all are.
        """
        if self.first_waiting is None:
            return
        yield self.first_waiting
        homes, left = self.homes(), self.order[1:]
        asked: Collection[int] | None = None
        while len(left):
            if homes is not None and (instances := near()) is not None and instances is not asked:
                left, asked = homes.wanted(left, instances), instances
                if not len(left):
                    return
            place, left = int(left[0]), left[1:]
            candidate = self.candidate(self.queue[place])
            if homes is not None and homes.home[place] != NOWHERE:
                candidate = replace(candidate, queue_s=float(homes.queue_s[place]))
            yield candidate


class Backlog:
    """The waiting requests in columns, in order of arrival, so that a thousand are ranked as fast as a few.

    Only the time changes in how a request stands while it waits; of anything else `change` is told. So its column is
    made when it comes, and kept until it leaves. It cannot leave and come back unnoticed: `follow` is called at every
    decision, and a request that has left with one comes back with another.
    """

    def __init__(self, by_priority: bool = True) -> None:
        """Make an empty one. by_priority: whether a higher priority goes before any rule."""
        self.by_priority = by_priority
        self.queue: list[Request] = []
        self._changes = 0
        self._room = np.empty((_WIDTH, _FIRST))

    def follow(self, state: SchedulerState, stand: Stand, saves: Saves = lambda tokens: 0.0) -> None:
        """Be about the requests that wait now."""
        waiting = state.waiting
        if self._changes == waiting.changes:
            return
        changed = waiting.changed_since(self._changes)
        self._changes = waiting.changes
        for request in list(dict.fromkeys((*self.queue, *waiting))) if changed is None else changed:
            place = bisect_left(self.queue, request.arrival_index, key=_ARRIVAL)
            is_known = place < len(self.queue) and self.queue[place] is request
            if is_known and request not in waiting:
                self._remove(place)
            elif request in waiting and not is_known:
                self._insert(place, request, _column(state, request, stand(request), saves))

    def _remove(self, place: int) -> None:
        last = len(self.queue) - 1
        self._room[:, place:last] = self._room[:, place + 1 : last + 1]
        del self.queue[place]

    def _insert(self, place: int, request: Request, column: tuple[float, ...]) -> None:
        count = len(self.queue)
        if count == self._room.shape[1]:
            self._room = np.concatenate((self._room, np.empty_like(self._room)), axis=1)
        if place < count:
            self._room[:, place + 1 : count + 1] = self._room[:, place:count]
        self._room[:, place] = column
        self.queue.insert(place, request)

    @property
    def _columns(self) -> Floats:
        return self._room[:, : len(self.queue)]

    def change(self, state: SchedulerState, request: Request, stand: Stand) -> None:
        """Note that a request stands otherwise than when `follow` came upon it, if it has."""
        if request in self.queue:
            self._columns[:, self.queue.index(request)] = _column(state, request, stand(request), lambda tokens: 0.0)

    def settle(self, request: Request, home: int, saved_s: float, left_s: float) -> None:
        """Note that a request that waits has its prefix on an instance, or will have it there. saved_s: see `Homes`.
        left_s: of its work there."""
        place = bisect_left(self.queue, request.arrival_index, key=_ARRIVAL)
        self._room[[_HOME, _SAVED, _LEFT], place] = (home, saved_s, left_s)

    def least_need(self) -> float:
        """Return the slots that the smallest one needs, headroom included; infinite if none waits."""
        return float(self._columns[_NEED].min()) if self.queue else inf

    def homes(self, order: NDArray[np.intp]) -> Homes | None:
        """Return what `Ranking.homes` finds."""
        home, saved_s, left_s = self._columns[_HOME], self._columns[_SAVED], self._columns[_LEFT]
        if not (home != NOWHERE).any():
            return None
        grouped = order[np.argsort(home[order], kind="stable")]  # by rank at each home
        is_first = np.append(True, home[grouped[1:]] != home[grouped[:-1]])  # of its home
        before_s = np.cumsum(left_s[grouped]) - left_s[grouped]
        before_s -= before_s[is_first][np.cumsum(is_first) - 1]
        queue_s = np.empty_like(before_s)
        queue_s[grouped] = before_s
        return Homes(home, saved_s, queue_s)

    def total_s(self) -> float:
        """Return the predicted seconds of all prefills that wait, each alone, without what is cached of them."""
        return float(self._columns[2].sum())

    def order(self, now: float, rule: Callable[[Standing[Floats]], Floats]) -> NDArray[np.intp]:
        """Return places in the queue by priority, rule and arrival."""
        if not self.queue:
            return _NOBODY
        *columns, priority, _, _, _, _ = self._columns
        ranks = rule(Standing(now, *columns))
        if self.by_priority and (priority != priority[0]).any():
            return np.lexsort((ranks, -priority))
        return np.argsort(ranks, kind="stable")


def _column(
    state: SchedulerState, request: Request, standing: Standing[float], saves: Saves
) -> tuple[float, ...]:
    held = state.cached_on(request) if request.prefix_keys else {}
    home = max(held, key=held.__getitem__) if held else NOWHERE
    priority = request.service.priority
    return (
        standing.arrived, standing.deadline_s, standing.remaining_s, standing.total_s, standing.scale_s, standing.tag,
        standing.place, standing.promised_s, priority, state.need(request), home,
        saves(request.num_cached) if held else 0.0, standing.remaining_s,
    )  # fmt: skip
