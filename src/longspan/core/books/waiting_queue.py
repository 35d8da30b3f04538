"""The requests that hold no KV, first come first."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from itertools import islice

from longspan.core.books.request import Request
from longspan.core.internal_error import InternalError


class WaitingQueue:
    """Sorted by arrival. A preempted request returns to its old place, before all that came later.

    changes: how often a request has come or left. A request does not change while it waits, so what was worked out from
        the queue holds until this does.
    """

    def __init__(self) -> None:
        # Two parallel lists, so that bisect compares plain integers. Time never runs backwards, so the
        # arrival index alone is the order by arrival time, ties by order of arrival.
        self._indices: list[int] = []
        self._requests: list[Request] = []
        self.changes = 0

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[Request]:
        return iter(self._requests)

    @property
    def first(self) -> Request:
        return self._requests[0]

    def after_first(self) -> Iterator[Request]:
        return islice(self._requests, 1, None)

    def add(self, request: Request) -> None:
        place = bisect_left(self._indices, request.arrival_index)
        self._indices.insert(place, request.arrival_index)
        self._requests.insert(place, request)
        self.changes += 1

    def remove(self, request: Request) -> None:
        place = bisect_left(self._indices, request.arrival_index)
        if place == len(self._requests) or self._requests[place] is not request:
            raise InternalError(f"request {request.id} does not wait")
        del self._indices[place]
        del self._requests[place]
        self.changes += 1
