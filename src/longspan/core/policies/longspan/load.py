"""How much work arrives: decaying averages of requests and of their seconds."""

from __future__ import annotations

import math


class ArrivingLoad:
    """What arrived of late, by the second. window_s: how far back it looks, exponentially."""

    def __init__(self, window_s: float) -> None:
        self.window_s = window_s
        self._requests = self._work_s = 0.0
        self._begun: float | None = None
        self._at = 0.0

    def arrive(self, now: float, work_s: float) -> None:
        kept = self._kept(now)
        self._requests = kept * self._requests + 1.0
        self._work_s = kept * self._work_s + work_s
        self._begun = now if self._begun is None else self._begun
        self._at = now

    def rate(self, now: float) -> float:
        """Return requests a second."""
        return self._kept(now) * self._requests / self._lasted(now)

    def work(self, now: float) -> float:
        """Return seconds of work a second."""
        return self._kept(now) * self._work_s / self._lasted(now)

    def _lasted(self, now: float) -> float:
        """The window, as far as it has been filled; what has just begun says little."""
        begun = now if self._begun is None else self._begun
        return self.window_s * max(0.05, 1.0 - math.exp((begun - now) / self.window_s))

    def _kept(self, now: float) -> float:
        """The part that is left of what was known at the last arrival. Asking changes nothing."""
        return 0.0 if self._begun is None else math.exp((self._at - now) / self.window_s)
