"""The requests that hold no KV, first come first."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Iterator
from itertools import islice

from longspan.core.books.request import Request
from longspan.core.internal_error import InternalError

_REMEMBERED = 256
"""Changes: more than there are from one decision to the next."""


class WaitingQueue:
    """Sorted by arrival. A preempted request returns to its old place, before all that came later.

    changes: how often a request has come or left. A request does not change while it waits, so what was worked out from
        the queue holds until this does.
    aside: requests that would not fit into the fleet of the day. They wait for instances to join, and are no part of
        the queue until then.
    """

    def __init__(self) -> None:
        # Two parallel lists, so that bisect compares plain integers. Time never runs backwards, so the
        # arrival index alone is the order by arrival time, ties by order of arrival.
        self._indices: list[int] = []
        self._requests: list[Request] = []
        self._recent: deque[Request] = deque(maxlen=_REMEMBERED)
        self.changes = 0
        self.aside: dict[str, Request] = {}

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[Request]:
        return iter(self._requests)

    def __contains__(self, request: Request) -> bool:
        """Tell whether it is in the queue, and not aside."""
        place = bisect_left(self._indices, request.arrival_index)
        return place < len(self._requests) and self._requests[place] is request

    def changed_since(self, changes: int) -> list[Request] | None:
        """Return who has come or left since there were so many changes, each once; None if that is too long ago."""
        count = self.changes - changes
        return list(dict.fromkeys(islice(reversed(self._recent), count))) if count <= len(self._recent) else None

    @property
    def first(self) -> Request:
        return self._requests[0]

    @property
    def num_all(self) -> int:
        """How many wait, those that are aside included."""
        return len(self._requests) + len(self.aside)

    def place(self, request: Request) -> int | None:
        """Return 1 for the first, and so on; None if it does not wait."""
        if request.id in self.aside:
            return len(self._requests) + 1 + list(self.aside).index(request.id)
        return bisect_left(self._indices, request.arrival_index) + 1 if request in self else None

    def add(self, request: Request) -> None:
        place = bisect_left(self._indices, request.arrival_index)
        self._indices.insert(place, request.arrival_index)
        self._requests.insert(place, request)
        self._note(request)

    def set_aside(self, request: Request) -> None:
        """Let it wait outside of the queue, whether or not it is in there."""
        if request in self and request.id not in self.aside:
            self.remove(request)
        self.aside[request.id] = request

    def remove(self, request: Request) -> None:
        if self.aside.pop(request.id, None) is not None:
            return
        place = bisect_left(self._indices, request.arrival_index)
        if place == len(self._requests) or self._requests[place] is not request:
            raise InternalError(f"request {request.id} does not wait")
        del self._indices[place]
        del self._requests[place]
        self._note(request)

    def _note(self, request: Request) -> None:
        self.changes += 1
        self._recent.append(request)
