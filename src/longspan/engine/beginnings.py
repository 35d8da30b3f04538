"""How often requests begin: when somebody who finds the queue full may come again."""

from __future__ import annotations

from collections import deque

LEAST_S, MOST_S = 1.0, 60.0
"""Nobody is told less or more: OpenAI's clients wait for a minute at most."""
_REMEMBERED = 32


class Beginnings:
    """The times at which the last requests left the queue, seconds of the engine's clock."""

    def __init__(self) -> None:
        self._times: deque[float] = deque(maxlen=_REMEMBERED)

    def note(self, now: float) -> None:
        """One has left it."""
        self._times.append(now)

    def next_s(self, now: float) -> float:
        """Return in how many seconds another will, as of late: the mean time from one to the next, the last one being
        still to come."""
        if not self._times:
            return LEAST_S
        return min(MOST_S, max(LEAST_S, (now - self._times[0]) / len(self._times)))
