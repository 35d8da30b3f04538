"""When the workers of a lost instance are started again: later each time, and so often only."""

from __future__ import annotations

from collections import deque

FIRST_S, LONGEST_S = 0.5, 60.0


class Restarts:
    """Of one instance. most: how often within any window_s seconds; a start that is longer ago does not count."""

    def __init__(self, most: int, window_s: float) -> None:
        self._most = most
        self._window_s = window_s
        self._starts: deque[float] = deque()

    def delay_s(self, now: float) -> float | None:
        """Note a start, and return how many seconds after `now` it is to be. None: there have been too many."""
        while self._starts and self._starts[0] <= now - self._window_s:
            self._starts.popleft()
        if len(self._starts) >= self._most:
            return None
        delay_s: float = min(LONGEST_S, FIRST_S * 2 ** len(self._starts))
        self._starts.append(now)
        return delay_s

    def of_another(self) -> Restarts:
        """Return those of another instance, under the same limits."""
        return Restarts(self._most, self._window_s)

    def forgive(self) -> None:
        """Whoever asks for a start by hand has mended what was wrong."""
        self._starts.clear()
