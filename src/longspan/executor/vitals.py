"""Whether a worker lives and gets on, told apart from a machine that has no time for it.

Its beats say so. Where they fail to come, or say for long that nothing moves, the kernel is asked: a process that
computes, or would if it were let, belongs to a loaded machine and is waited for longer; one that is stopped, or sleeps,
does not.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

_DOUBTFUL_S = 2.0  # of silence: from here on the kernel is asked
PATIENCE = 8
"""So many times the timeout a worker is waited for that shows the kernel alone that it lives."""


class _Threads:
    """What the kernel tells of some threads: when they were last seen to compute, or to be kept from it."""

    def __init__(self) -> None:
        self.last_sign = float("-inf")
        self._ticks: int | None = None

    def look(self, stats: Iterable[Path], now: float) -> None:
        ticks, runs = 0, False
        for stat in stats:
            with suppress(OSError, IndexError):  # the thread has ended meanwhile
                fields = stat.read_text().rpartition(")")[2].split()
                runs |= fields[0] in "RD"
                ticks += int(fields[11]) + int(fields[12])
        if runs or (self._ticks is not None and ticks != self._ticks):
            self.last_sign = now
        self._ticks = ticks


class Vitals:
    """Of one process; `now` in seconds of any one clock. Its main thread is the one that works."""

    def __init__(self, pid: int, timeout_s: float, now: float) -> None:
        self.timeout_s = timeout_s
        self._all = Path(f"/proc/{pid}/task")
        self._main = self._all / str(pid) / "stat"
        self._progress = -1
        self.reset(now)

    def reset(self, now: float) -> None:
        """Begin anew: what was before says nothing."""
        self._last_beat = self._last_progress = now
        self._process, self._worker = _Threads(), _Threads()

    def beat(self, progress: int, now: float) -> None:
        self._last_beat = now
        if progress != self._progress:
            self.moves(now)
            self._progress = progress

    def moves(self, now: float) -> None:
        """It has got on, or has had nothing to do until now."""
        self._last_progress = now

    def excuse(self, seconds: float) -> None:
        """For so long nobody could have heard it."""
        self._last_beat += seconds
        self._last_progress += seconds

    def verdict(self, now: float, *, has_work: bool) -> str | None:
        """Return how the worker fails to live, in words that go behind its name; None while it may."""
        silent, still = now - self._last_beat, now - self._last_progress if has_work else 0.0
        if silent > _DOUBTFUL_S:
            self._process.look(sorted(self._all.glob("*/stat")), now)
            if self._gives_up(silent, now - self._process.last_sign):
                return f"gave no sign of life for {silent:.0f} s"
        if still > _DOUBTFUL_S:
            self._worker.look([self._main], now)
            if self._gives_up(still, now - self._worker.last_sign):
                return f"made no progress for {still:.0f} s"
        return None

    def _gives_up(self, missed_s: float, unseen_s: float) -> bool:
        """unseen_s: since the kernel has shown it alive."""
        return missed_s > self.timeout_s and (unseen_s > self.timeout_s or missed_s > PATIENCE * self.timeout_s)


class VitalsElsewhere(Vitals):
    """Of a process of another machine, whose agent looks at them."""

    def __init__(self) -> None:
        super().__init__(0, float("inf"), 0.0)

    def verdict(self, now: float, *, has_work: bool) -> str | None:
        return None
