"""The requests without their first token, in columns: a thousand are looked at as fast as a few."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from longspan.core.books.request import Request
from longspan.core.policies.chunked.priority import Floats
from longspan.core.policies.longspan.eta import Unserved
from longspan.core.policies.longspan.fair_eta import limited
from longspan.core.policies.longspan.tenants import TenantShares

_DUE, _TAG, _LEFT, _WORK, _STORED, _PRIORITY, _PLACE = range(7)
_FIRST = 64  # places, doubled when they are taken


class Crowd:
    """Who they are, and what is left of each; `Unserved` says what that means.

    left: of a request as it stands, the seconds until it ends alone, and those for which it keeps instances from
    others; both as predictions go. It is asked again when more or less of the request has been scheduled.
    """

    def __init__(self, left: Callable[[Request], tuple[float, float]]) -> None:
        self._left = left
        self._requests: list[Request] = []
        self._places: dict[str, int] = {}
        self._columns = np.empty((7, _FIRST))

    def __len__(self) -> int:
        return len(self._requests)

    def add(self, request: Request, due: float, tag: float, tenant: int = 0) -> None:
        """Add one. due, tag: see `Unserved`. tenant: the place of its tenant in `TenantShares`."""
        place = self._places[request.id] = len(self._requests)
        self._requests.append(request)
        if place == self._columns.shape[1]:
            self._columns = np.concatenate((self._columns, np.empty_like(self._columns)), axis=1)
        self._columns[:, place] = (due, tag, 0.0, 0.0, -1.0, request.service.priority, tenant)

    def remove(self, request_id: str) -> Request | None:
        """Return the request that it was; None if it is not there. The last one takes its place."""
        place = self._places.pop(request_id, None)
        if place is None:
            return None
        request, last = self._requests[place], self._requests.pop()
        if last is not request:
            self._requests[place] = last
            self._places[last.id] = place
            self._columns[:, place] = self._columns[:, len(self._requests)]
        return request

    def standing(self, weight: float, scale: float) -> Floats:
        """Return the fields of `Unserved`, each for all. weight, scale: see `order.rank`."""
        self._follow()
        due, tag, left_s, work_s, *_ = self._columns[:, : len(self._requests)]
        left_s = scale * left_s
        return np.stack((left_s, work_s, due + weight * left_s, due, tag))

    def one(self, request: Request, standing: Floats) -> Unserved:
        """Return one of them. standing: of all."""
        return Unserved(*standing[:, self._places[request.id]].tolist())

    def rivals(self, request: Request, standing: Floats, shares: TenantShares | None = None) -> Floats:
        """Return those that may go before it: of its own priority as they stand, of a higher one ahead of it anyway.

        standing: of all. shares: of the service; then of another tenant's work so much as is served before it.
        """
        higher = self._columns[_PRIORITY, : len(self._requests)] - request.service.priority
        found = standing[:, higher >= 0]
        above = higher[higher >= 0] > 0
        for row in ("key", "tag"):
            found[Unserved._fields.index(row), above] = -np.inf
        if shares is None:
            return found
        places = self._columns[_PLACE, : len(self._requests)][higher >= 0][~above]
        equals = limited(found[:, ~above], places, self.one(request, standing), shares.place(request), shares)
        return np.concatenate((found[:, above], equals), axis=1)

    def _follow(self) -> None:
        stored = np.array([request.num_stored for request in self._requests], dtype=float)
        for place in np.flatnonzero(stored != self._columns[_STORED, : len(stored)]).tolist():
            left_s, work_s = self._left(self._requests[place])
            self._columns[[_LEFT, _WORK, _STORED], place] = (left_s, work_s, stored[place])
