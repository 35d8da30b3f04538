"""Dividing something among unequal rooms."""

from __future__ import annotations

from collections.abc import Sequence


def share_evenly(amount: int, rooms: Sequence[int]) -> list[int]:
    """Return shares as equal as the rooms allow. They add up to `amount`, which must fit."""
    shares = [0] * len(rooms)
    smallest_first = sorted(range(len(rooms)), key=lambda place: rooms[place])
    for done, place in enumerate(smallest_first):
        shares[place] = min(rooms[place], amount // (len(rooms) - done))
        amount -= shares[place]
    assert amount == 0, "more to share than there is room"
    return shares
