"""Which instance holds the KV of which tokens of which request."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from longspan.core.actions import KVRange
from longspan.core.books.numbering import Numbering
from longspan.core.books.residence import Residence
from longspan.core.internal_error import InternalError


class KVPlacement:
    """Residences, and which request refers to which. Today a request has one of its own, and refers to no other.

    A residence is there as long as a request refers to it: the one that writes it, until it has ended and no batch
    or migration in flight touches it. Residences are numbered in the order in which they begin.

    own: by request, the residence that it writes; only for reading. A request that holds no KV has none.
    """

    def __init__(self, numbering: Numbering | None = None) -> None:
        self.own: dict[str, Residence] = {}
        self._numbering = Numbering() if numbering is None else numbering

    def __contains__(self, request_id: str) -> bool:
        return request_id in self.own

    def __iter__(self) -> Iterator[str]:
        """Iterate over the requests that hold KV."""
        return iter(self.own)

    def __len__(self) -> int:
        """Return how many requests hold KV."""
        return len(self.own)

    def residences(self) -> Iterator[Residence]:
        return iter(self.own.values())

    def ranges(self, request_id: str) -> tuple[KVRange, ...]:
        residence = self.own.get(request_id)
        return () if residence is None else residence.ranges()

    def held(self, request_id: str, instance: int) -> list[tuple[int, int]]:
        """Return [start, end) of the request's tokens that an instance holds, in order."""
        residence = self.own.get(request_id)
        return [] if residence is None else residence.held(instance)

    def counts(self, request_id: str) -> dict[int, int]:
        """Return a copy of instance -> tokens; empty for a request without KV."""
        residence = self.own.get(request_id)
        return {} if residence is None else dict(residence.counts)

    def context(self, request_id: str) -> tuple[tuple[int, int], ...]:
        """Return (instance, tokens) by instance, as `Segment.context` has it."""
        residence = self.own.get(request_id)
        return () if residence is None else residence.context

    def holders(self, request_id: str) -> tuple[int, ...]:
        residence = self.own.get(request_id)
        return () if residence is None else residence.holders

    def last_holder(self, request_id: str) -> int:
        """Return the instance that holds the newest token."""
        return self.own[request_id].last_holder

    def total(self, instance: int) -> int:
        """Return the tokens of all residences on an instance. Sums over all: for checks, not for decisions."""
        return sum(residence.counts.get(instance, 0) for residence in self.own.values())

    def add(self, request_id: str, store: Sequence[KVRange]) -> Residence:
        """Store the next tokens of a request, in order from where its KV ends; returns its residence."""
        residence = self.own.get(request_id)
        if residence is None:
            residence = self.own[request_id] = Residence(self._numbering.residences)
            self._numbering.residences += 1
        residence.append(store)
        return residence

    def move(self, request_id: str, source: int, target: int, ranges: Sequence[tuple[int, int]]) -> None:
        """Give the tokens of `ranges`, all of them at `source`, to `target`."""
        self.own[request_id].move(source, target, ranges)

    def free(self, request_id: str) -> Residence:
        """Let the request refer to its residence no more, which ends it; returns what it was."""
        return self.own.pop(request_id)

    def require_held(self, request_id: str, instance: int, ranges: Sequence[tuple[int, int]]) -> None:
        """Raise unless `ranges` are in order, disjoint, not empty, and all held by `instance`."""
        residence = self.own.get(request_id)
        if residence is None:
            raise InternalError(f"request {request_id} holds no KV")
        residence.require_held(instance, ranges)
