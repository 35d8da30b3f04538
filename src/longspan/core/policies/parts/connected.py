"""The connected parts of "holds KV of": instances that some request joins, or a chain of them does."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache


class Leaders(dict[int, int]):
    """Instance -> the leader of its connected part, the one with the lowest number: itself unless it is joined."""

    def __missing__(self, number: int) -> int:
        return number


def connect(sets_of_holders: Iterable[tuple[int, ...]]) -> Leaders:
    parts: list[int] = []  # disjoint sets of instances, as bits
    for holders in {holders for holders in sets_of_holders if len(holders) > 1}:
        joined = _bits(holders)
        if any(joined & part == joined for part in parts):
            continue
        apart = [part for part in parts if not part & joined]
        for part in parts:
            if part & joined:
                joined |= part
        parts = [*apart, joined]
    leader = Leaders()
    for part in parts:
        lead = (part & -part).bit_length() - 1
        for number in range(lead, part.bit_length()):
            if part >> number & 1:
                leader[number] = lead
    return leader


@lru_cache(maxsize=1 << 14)
def _bits(numbers: tuple[int, ...]) -> int:
    return sum(1 << number for number in numbers)
