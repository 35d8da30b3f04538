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
        self._decay(now)
        self._requests += 1.0
        self._work_s += work_s

    def rate(self, now: float) -> float:
        """Return requests a second."""
        self._decay(now)
        return self._requests / self._lasted(now)

    def work(self, now: float) -> float:
        """Return seconds of work a second."""
        self._decay(now)
        return self._work_s / self._lasted(now)

    def _lasted(self, now: float) -> float:
        """The window, as far as it has been filled; what has just begun says little."""
        begun = now if self._begun is None else self._begun
        return self.window_s * max(0.05, 1.0 - math.exp((begun - now) / self.window_s))

    def _decay(self, now: float) -> None:
        if self._begun is None:
            self._begun = now
        else:
            kept = math.exp((self._at - now) / self.window_s)
            self._requests *= kept
            self._work_s *= kept
        self._at = now
