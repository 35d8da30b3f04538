"""How often those who watch may ask, so that their number costs the others nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

INTERVAL_S = 0.5
MOST_OF_THE_LOOP = 0.02
_WEIGHT = 0.1


class Pace:
    """One for all readers: the more there are and the longer an answer takes, the rarer each may ask.

    readers: how many there are. cost_s: seconds that an answer takes, smoothed.
    """

    def __init__(self) -> None:
        self.readers = 0
        self.cost_s = 0.0

    @property
    def interval_s(self) -> float:
        """Seconds between two questions of one reader: all take no more than a fiftieth of the event loop."""
        return max(INTERVAL_S, self.readers * self.cost_s / MOST_OF_THE_LOOP)

    @contextmanager
    def reader(self) -> Iterator[None]:
        """Count one more meanwhile."""
        self.readers += 1
        try:
            yield
        finally:
            self.readers -= 1

    def note(self, seconds: float) -> None:
        """Learn what an answer took."""
        self.cost_s += _WEIGHT * (seconds - self.cost_s)
