"""A search for the longest that keeps a limit."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

_SECANTS = 8


def longest(most: int, seconds: Callable[[int], float], limit: float) -> int:
    """Return the longest length up to `most` that takes no more seconds than the limit, 0 if none does.

    seconds: never falls as lengths grow. It is nearly a line: so where the line through the last two lengths tried
    meets the limit is tried next, and half the way only when that does not come to an end.
    """
    if most < 1:
        return most
    if (low_s := seconds(1)) > limit:  # as nearly always where others have filled the time before
        return 0
    if (high_s := seconds(most)) <= limit:
        return most
    low, high = 1, most  # low keeps the limit, high does not
    before, before_s, last, last_s = 1, low_s, most, high_s
    for tries in count():
        if high - low == 1:
            return low
        tried = (low + high) // 2
        if tries < _SECANTS and last_s != before_s:
            meets = last + (limit - last_s) * (last - before) / (last_s - before_s)
            tried = int(min(max(meets, low + 1), high - 1))
        before, before_s, last, last_s = last, last_s, tried, seconds(tried)
        low, high = (tried, high) if last_s <= limit else (low, tried)
    raise AssertionError
