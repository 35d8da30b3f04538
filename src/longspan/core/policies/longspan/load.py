"""How much work arrives, and how much is served: decaying averages of requests and of their seconds."""

from __future__ import annotations

import math

_RATE_WINDOW_S = 60.0
_PRIOR_S = 5.0  # so long at best is supposed at first
_SLOWEST, _FASTEST = 0.2, 1.3  # of what the instances can do


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


class ServiceRate:
    """Seconds of work that are served in a second, while there is enough of it.

    most: what all instances can do at best. Work is set against all the time in which there was a backlog, so that
    iterations of decodes alone, and waiting for peers, count as well.
    """

    def __init__(self, most: float) -> None:
        self.most = most
        self._work_s = self._busy_s = 0.0
        self._at: float | None = None
        self._is_behind = False

    def advance(self, now: float, is_behind: bool) -> None:
        """Note whether there is a backlog from now on."""
        if self._at is not None and self._is_behind:
            kept = math.exp((self._at - now) / _RATE_WINDOW_S)
            self._work_s *= kept
            self._busy_s = kept * self._busy_s + _RATE_WINDOW_S * (1.0 - kept)
        self._at, self._is_behind = now, is_behind

    def note(self, work_s: float) -> None:
        """Note work that has been done."""
        if self._is_behind:
            self._work_s += work_s

    def __call__(self) -> float:
        rate = (self._work_s + _PRIOR_S * self.most) / (self._busy_s + _PRIOR_S)
        return min(_FASTEST * self.most, max(_SLOWEST * self.most, rate))
