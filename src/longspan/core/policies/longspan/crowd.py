"""The requests without their first token, in columns: a thousand are looked at as fast as a few."""

from __future__ import annotations

from collections.abc import Callable, Set

import numpy as np

from longspan.core.books.request import Request, RequestStatus
from longspan.core.books.waiting_queue import WaitingQueue
from longspan.core.policies.chunked.priority import Floats
from longspan.core.policies.longspan.eta import Unserved
from longspan.core.policies.longspan.fair_eta import limited
from longspan.core.policies.longspan.tenants import TenantShares

_DUE, _TAG, _LEFT, _WORK, _PRIORITY, _PLACE = range(6)
_FIRST = 64  # places, doubled when they are taken


class Crowd:
    """Who they are, and what is left of each; `Unserved` says what that means.

    left: of a request as it stands, the seconds until it ends alone, and those for which it keeps instances from
    others; both as predictions go. It is asked again when more or less of the request has been scheduled. Those alone
    are looked at of which that may be: who waits is as it was.
    """

    def __init__(self, left: Callable[[Request], tuple[float, float]]) -> None:
        self._left = left
        self._restless: dict[str, Request] = {}
        self._moved_at: dict[str, float] = {}  # when a chunk of theirs was last done
        self._changes = 0  # of the queue
        self._requests: list[Request] = []
        self._places: dict[str, int] = {}
        self._known: dict[str, int] = {}  # tokens, when what is left was asked
        self._columns = np.empty((6, _FIRST))

    def __len__(self) -> int:
        return len(self._requests)

    @property
    def names(self) -> Set[str]:
        """Their ids."""
        return self._places.keys()

    def add(self, request: Request, due: float, tag: float, tenant: int = 0) -> None:
        """Add one. due, tag: see `Unserved`. tenant: the place of its tenant in `TenantShares`."""
        place = self._places[request.id] = len(self._requests)
        self._requests.append(request)
        if place == self._columns.shape[1]:
            self._columns = np.concatenate((self._columns, np.empty_like(self._columns)), axis=1)
        self._columns[:, place] = (due, tag, 0.0, 0.0, request.service.priority, tenant)
        self._restless[request.id] = request

    def remove(self, request_id: str) -> Request | None:
        """Return the request that it was; None if it is not there. The last one takes its place."""
        place = self._places.pop(request_id, None)
        if place is None:
            return None
        self._restless.pop(request_id, None)
        self._moved_at.pop(request_id, None)
        self._known.pop(request_id, None)
        request, last = self._requests[place], self._requests.pop()
        if last is not request:
            self._requests[place] = last
            self._places[last.id] = place
            self._columns[:, place] = self._columns[:, len(self._requests)]
        return request

    def move(self, request_id: str, now: float) -> None:
        """Note that a chunk of one is done, if it is there."""
        if request_id in self._places:
            self._moved_at[request_id] = now

    def running_s(self, request: Request, chunks_s: float, now: float) -> float:
        """Return the seconds that chunks under way still take. chunks_s: from their begin: its arrival, or the end of
        the one before them."""
        return max(0.0, chunks_s - (now - self._moved_at.get(request.id, request.arrived)))

    def standing(self, waiting: WaitingQueue, weight: float, scale: float) -> Floats:
        """Return the fields of `Unserved`, each for all. waiting: the queue. weight, scale: see `order.rank`."""
        self._follow(waiting)
        due, tag, left_s, work_s, *_ = self._columns[:, : len(self._requests)]
        left_s = scale * left_s
        return np.array((left_s, work_s, due + weight * left_s, due, tag))

    def one(self, request: Request, standing: Floats) -> Unserved:
        """Return one of them. standing: of all."""
        return Unserved(*standing[:, self._places[request.id]].tolist())

    def rivals(self, request: Request, standing: Floats, shares: TenantShares | None = None) -> Floats:
        """Return those that may go before it: of its own priority as they stand, of a higher one ahead of it anyway.

        standing: of all. shares: of the service; then of another tenant's work so much as is served before it.
        """
        higher = self._columns[_PRIORITY, : len(self._requests)] - request.service.priority
        if shares is None and not higher.any():  # as nearly always
            return standing
        found = standing[:, higher >= 0]
        above = higher[higher >= 0] > 0
        for row in ("key", "tag"):
            found[Unserved._fields.index(row), above] = -np.inf
        if shares is None:
            return found
        places = self._columns[_PLACE, : len(self._requests)][higher >= 0][~above]
        equals = limited(found[:, ~above], places, self.one(request, standing), shares.place(request), shares)
        return np.concatenate((found[:, above], equals), axis=1)

    def renew(self) -> None:
        """Ask anew what is left of each: predictions are others."""
        self._known.clear()
        self._restless = self._all()

    def change(self, request: Request) -> None:
        """Note that more, or less, is to be computed of a request that waits, if it is there."""
        if request.id in self._places:
            self._restless[request.id] = request

    def _all(self) -> dict[str, Request]:
        return {request.id: request for request in self._requests}

    def _follow(self, waiting: WaitingQueue) -> None:
        changed = waiting.changed_since(self._changes)
        self._changes = waiting.changes
        if changed is None:
            self._restless = self._all()
        else:
            for one in changed:
                if (place := self._places.get(one.id)) is not None:
                    self._restless[one.id] = self._requests[place]
        known = self._known
        for name, request in list(self._restless.items()):
            tokens = request.num_known
            if tokens != known.get(name):
                self._columns[[_LEFT, _WORK], self._places[name]] = self._left(request)
                known[name] = tokens
            if request.status is RequestStatus.WAITING:
                del self._restless[name]
