"""How fast work leaves a full place: when those who find no room in it may come again."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from longspan.engine.beginnings import LEAST_S, MOST_S

_REMEMBERED = 32


class Departures:
    """What has left lately, and how much of it: requests, tokens, characters, whatever the place counts.

    clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since = clock()
        self._left: deque[tuple[float, float]] = deque()

    def begin(self) -> None:
        """Note that something comes in where nothing was: how long that lasted says nothing of the pace."""
        self._since = self._clock()
        self._left.clear()

    def note(self, amount: float = 1.0) -> None:
        """So much has left."""
        self._left.append((self._clock(), amount))
        if len(self._left) > _REMEMBERED:
            self._since, _ = self._left.popleft()

    def after_s(self, amount: float = 1.0) -> float:
        """Return in how many seconds so much more will have left, at the pace of late, between a second and a minute.

        Where nothing has left yet it is as long again as what is there has been there.
        """
        passed = self._clock() - self._since
        left = sum([each for _, each in list(self._left)])  # another may leave meanwhile
        expected = passed * amount / left if left > 0.0 else passed
        return min(MOST_S, max(LEAST_S, expected))
