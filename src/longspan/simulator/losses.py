"""What losses cost: tokens that are computed again."""

from __future__ import annotations

from collections.abc import Iterable

from longspan.core.actions import RunBatch


class Losses:
    """num_lost: instances that were lost, or have left. num_void: batches that came to nothing by that. recomputed:
    tokens of iterations which had been computed before, by whatever cause; void ones that had run to no end are none.
    """

    def __init__(self) -> None:
        self.num_lost = 0
        self.num_void = 0
        self.recomputed = 0
        self._reached: dict[str, int] = {}  # by request, how far its tokens have been computed
        self._again: dict[str, int] = {}  # by request, how many have been computed again
        self._running: dict[int, RunBatch] = {}

    def issued(self, batch: RunBatch) -> None:
        """Note that a batch begins."""
        self._running[batch.batch_id] = batch
        for segment in batch.segments:
            reached = self._reached.get(segment.request_id, 0)
            if segment.start < reached:
                again = min(segment.end, reached) - segment.start
                self.recomputed += again
                self._again[segment.request_id] = self._again.get(segment.request_id, 0) + again

    def completed(self, batch_id: int) -> None:
        """Note that it has run to its end."""
        for segment in self._running.pop(batch_id).segments:
            if segment.end > self._reached.get(segment.request_id, 0):
                self._reached[segment.request_id] = segment.end

    def void(self, batch_ids: Iterable[int]) -> None:
        """Note that these have come to nothing."""
        for batch_id in batch_ids:
            del self._running[batch_id]
            self.num_void += 1

    def recomputed_of(self, request_id: str) -> int:
        """Return the tokens of a request that goes on which have been computed again."""
        return self._again.get(request_id, 0)

    def forget(self, request_id: str) -> None:
        """Note that a request has ended."""
        self._reached.pop(request_id, None)
        self._again.pop(request_id, None)
