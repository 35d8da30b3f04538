"""How fast a request's body comes."""

from __future__ import annotations

from longspan.entrypoints.http_connections import ConnectionLimits


class BodyPace:
    """Bytes in windows of time. All times are seconds of the event loop's clock.

    framing: bytes that came since the last piece of the body, and were none of it.
    """

    def __init__(self, limits: ConnectionLimits) -> None:
        self._limits = limits
        self._begin = self._last_progress = 0.0
        self._bytes = 0
        self.framing = 0

    @property
    def num_bytes(self) -> int:
        """Of the body, in this window."""
        return self._bytes

    def start_window(self, now: float) -> None:
        """Nothing that has come or failed to come until now counts."""
        self._begin = self._last_progress = now
        self._bytes = 0

    def take(self, size: int, now: float) -> None:
        """So much of the body has come."""
        self._bytes += size
        self._last_progress = now

    def is_too_slow(self, now: float) -> bool:
        """Tell whether a body makes no progress, or too little; a window that has been good enough is over then."""
        limits, window = self._limits, now - self._begin
        if window >= limits.body_s and self._bytes < limits.body_rate * window:
            return True
        if now - self._last_progress > limits.body_s:
            return True
        if window >= limits.body_s:
            self.start_window(now)
        return False
