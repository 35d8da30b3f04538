"""Which instance holds the KV of which tokens of which request."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from longspan.core.actions import KVRange
from longspan.core.internal_error import InternalError


@dataclass(slots=True)
class _Residence:
    """One request's KV: who owns which tokens, in token order without gap, neighbours merged; tokens per instance.

    owners[i] has the tokens from starts[i] on, up to the next start, or to `end`.
    counts: by instance, in that order; holders: its instances; context: its items, None until it is asked for. These
        two are kept because they are asked for several times between changes.
    """

    owners: list[int] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    end: int = 0
    counts: dict[int, int] = field(default_factory=dict)
    holders: tuple[int, ...] = ()
    context: tuple[tuple[int, int], ...] | None = None

    def ranges(self) -> Iterator[KVRange]:
        return map(KVRange, self.owners, self.starts, [*self.starts[1:], self.end])

    def extend(self, owner: int, end: int) -> None:
        """`owner` gets the tokens up to `end`."""
        if not self.owners or self.owners[-1] != owner:
            self.owners.append(owner)
            self.starts.append(self.end)
            if owner not in self.counts:
                self.counts = dict(sorted({**self.counts, owner: 0}.items()))
                self.holders = tuple(self.counts)
        self.counts[owner] += end - self.end
        self.end = end
        self.context = None


class KVPlacement:
    """Every token of a request has exactly one owner, and the ranges cover [0, tokens stored).

    Ranges stay exact, not only counts, because a migration names the tokens that it moves.
    """

    def __init__(self) -> None:
        self._residences: dict[str, _Residence] = {}

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._residences

    def __iter__(self) -> Iterator[str]:
        return iter(self._residences)

    def __len__(self) -> int:
        return len(self._residences)

    def ranges(self, request_id: str) -> tuple[KVRange, ...]:
        return tuple(self._residences[request_id].ranges()) if request_id in self._residences else ()

    def counts(self, request_id: str) -> dict[int, int]:
        """Instance -> tokens, a copy. Empty for a request without KV."""
        return dict(self._residences[request_id].counts) if request_id in self._residences else {}

    def context(self, request_id: str) -> tuple[tuple[int, int], ...]:
        """(instance, tokens) by instance: what `Segment.context` says."""
        residence = self._residences.get(request_id)
        if residence is None:
            return ()
        if residence.context is None:
            residence.context = tuple(residence.counts.items())
        return residence.context

    def holders(self, request_id: str) -> tuple[int, ...]:
        residence = self._residences.get(request_id)
        return () if residence is None else residence.holders

    def last_holder(self, request_id: str) -> int:
        """The instance that holds the newest token."""
        return self._residences[request_id].owners[-1]

    def total(self, instance: int) -> int:
        """Tokens of all requests on an instance. Sums over all requests: for checks, not for decisions."""
        return sum(residence.counts.get(instance, 0) for residence in self._residences.values())

    def add(self, request_id: str, new: KVRange) -> None:
        """Store the next tokens of a request: `new` begins where its KV ends."""
        residence = self._residences.get(request_id)
        stored = residence.end if residence is not None else 0
        if new.start != stored or new.end <= new.start:
            raise InternalError(f"request {request_id}: {new} does not extend its {stored} stored tokens")
        if residence is None:
            residence = self._residences[request_id] = _Residence()
        residence.extend(new.instance, new.end)

    def move(self, request_id: str, source: int, target: int, ranges: Iterable[tuple[int, int]]) -> None:
        """Give the tokens of `ranges`, all of them at `source`, to `target`."""
        moved = sorted(ranges)
        self.require_held(request_id, source, moved)
        after = _Residence()
        for piece in _reassigned(self._residences[request_id].ranges(), target, moved):
            after.extend(piece.instance, piece.end)
        self._residences[request_id] = after

    def free(self, request_id: str) -> dict[int, int]:
        """Forget a request; returns what it held, instance -> tokens."""
        return self._residences.pop(request_id).counts

    def require_held(self, request_id: str, instance: int, ranges: Iterable[tuple[int, int]]) -> None:
        """Raise unless `ranges` are in order, disjoint, not empty, and all held by `instance`."""
        owned = [piece for piece in self.ranges(request_id) if piece.instance == instance]
        starts = [piece.start for piece in owned]
        previous_end = 0
        for start, end in ranges:
            if not previous_end <= start < end:
                raise InternalError(f"request {request_id}: range [{start}, {end}) is empty or out of order")
            place = bisect_right(starts, start) - 1
            if place < 0 or end > owned[place].end:
                raise InternalError(f"request {request_id}: [{start}, {end}) is not at instance {instance}")
            previous_end = end
        if previous_end == 0:
            raise InternalError(f"request {request_id}: no ranges to move")


def _reassigned(ranges: Iterable[KVRange], target: int, moved: Iterable[tuple[int, int]]) -> Iterator[KVRange]:
    """`ranges`, with the parts in `moved` given to `target`; each of them lies inside one range."""
    pending = sorted(moved, reverse=True)
    for owned in ranges:
        position = owned.start
        while pending and pending[-1][0] < owned.end:
            start, end = pending.pop()
            if position < start:
                yield KVRange(owned.instance, position, start)
            yield KVRange(target, start, end)
            position = end
        if position < owned.end:
            yield KVRange(owned.instance, position, owned.end)
