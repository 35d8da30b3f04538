"""What the log says of requests that are served later than is promised."""

from __future__ import annotations

import logging
from collections.abc import Callable

logger = logging.getLogger(__name__)

EVERY_S = 60.0


class LatenessLog:
    """Writes one warning a minute at most, however many there are. clock: seconds, monotonic."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._told = 0
        self._told_at = float("-inf")

    def tell(self, num_served_late: int) -> None:
        """Warn of those that have come since the last warning, unless that was just now.

        num_served_late: since the engine's start.
        """
        new, now = num_served_late - self._told, self._clock()
        if new == 0 or now - self._told_at < EVERY_S:
            return
        logger.warning(
            "overload: %d request%s served, though the first token will come later than is promised; "
            "--overload enforce would refuse them",
            new, " is" if new == 1 else "s are",
        )  # fmt: skip
        self._told, self._told_at = num_served_late, now
