"""Processor sharing by weights, simulated beside the real server (PSBS, arXiv 1506.09158)."""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heappop, heappush


class VirtualSharing:
    """A server that shares itself among all jobs by their weights, and does as much work as the real one.

    It keeps a clock g, the *virtual lag*: the seconds of work that a job of weight 1 would have got since the start. A
    job of size s and weight w that comes at g ends at g + s / w, whoever comes after. A job stays here until it ends
    here, though the real server is done with it: the others would not get its share before.
    """

    def __init__(self) -> None:
        self.lag_s = 0.0
        self._ends: list[tuple[float, str]] = []
        self._weights: dict[str, float] = {}
        self._total = 0.0

    def arrive(self, job: str, size_s: float, weight: float) -> float:
        """Add a job; returns the lag at which it ends."""
        end = self.lag_s + size_s / weight
        heappush(self._ends, (end, job))
        self._weights[job] = weight
        self._total += weight
        return end

    def leave(self, job: str) -> None:
        """Take out a job that has been given up, if it is here."""
        if self._weights.pop(job, None) is not None:
            self._total = sum(self._weights.values())

    def work(self, seconds: float) -> Iterator[str]:
        """Serve for so many seconds of work; yields the jobs that end, in order. What nobody wants is lost."""
        while self._ends:
            end, job = self._ends[0]
            if job in self._weights:
                needed_s = (end - self.lag_s) * self._total
                if needed_s > seconds:
                    self.lag_s += seconds / self._total
                    return
                seconds -= needed_s
                self.lag_s = max(self.lag_s, end)
                self.leave(job)
                yield job
            heappop(self._ends)

    def clear(self) -> None:
        """Forget all jobs: the real server has none."""
        self._ends.clear()
        self._weights.clear()
        self._total = 0.0
