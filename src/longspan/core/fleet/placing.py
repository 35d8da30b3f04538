"""Where lost tokens go: to where they were about to be, or to the instances that hold most of their request."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from longspan.core.actions import KVRange
from longspan.core.books.ledger import Ledger
from longspan.core.kv.residence import Residence

_NOBODY = -1


class Rooms:
    """Free slots that nobody has reserved, of the instances that stay. They are looked up anew for each plan."""

    def __init__(self, ledger: Ledger, lost: int | None = None) -> None:
        """lost: an instance that does not stay, though the books have it still."""
        self.lost = lost
        self._cluster = ledger.cluster

    def now(self) -> dict[int, int]:
        """Return them by instance, without those that have none."""
        able = [each for each in self._cluster.instances if each.id != self.lost and not each.is_leaving]
        return {instance.id: instance.unreserved for instance in able if instance.unreserved > 0}

    def plan(self, residence: Residence, wanted: Sequence[KVRange]) -> tuple[KVRange, ...] | None:
        """Return where the residence's missing tokens go, in order; None if there is no room.

        wanted: where some of them were to go before.
        """
        missing = residence.missing()
        if not missing:
            return ()
        rooms, planned = self.now(), list[KVRange]()
        for start, end in missing:
            for wish in _pieces(start, end, wanted):
                if not _place(wish, residence.counts, rooms, planned):
                    return None
        return tuple(planned)

    def replace(self, planned: tuple[KVRange, ...]) -> tuple[KVRange, ...] | None:
        """Return a reservation in which others stand for the instance that is lost; None if there is no room."""
        if all([each.instance != self.lost for each in planned]):
            return planned
        rooms, found = self.now(), list[KVRange]()
        for each in planned:
            if each.instance != self.lost:
                found.append(each)
            elif not _place(each, {}, rooms, found):
                return None
        return tuple(found)


def _pieces(start: int, end: int, wanted: Sequence[KVRange]) -> Iterator[KVRange]:
    """Cut [start, end) up by who was to have it; _NOBODY: nobody was."""
    for wish in sorted(wanted, key=lambda wish: wish.start):
        low, high = max(start, wish.start), min(end, wish.end)
        if low < high:
            if start < low:
                yield KVRange(_NOBODY, start, low)
            yield KVRange(wish.instance, low, high)
            start = high
    if start < end:
        yield KVRange(_NOBODY, start, end)


def _place(wish: KVRange, held: dict[int, int], rooms: dict[int, int], planned: list[KVRange]) -> bool:
    """Add to the plan where these tokens go, and lower the rooms; returns whether there was room for all."""
    position = wish.start
    for number in sorted(rooms, key=lambda n: (n != wish.instance, -held.get(n, 0), -rooms[n], n)):
        length = min(rooms[number], wish.end - position)
        if length:
            rooms[number] -= length
            _append(planned, KVRange(number, position, position + length))
            position += length
    return position == wish.end


def _append(planned: list[KVRange], new: KVRange) -> None:
    if planned and planned[-1].instance == new.instance and planned[-1].end == new.start:
        new = KVRange(new.instance, planned.pop().start, new.end)
    planned.append(new)
