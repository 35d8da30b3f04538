"""Which rows of a batch an instance computes, and of which tokens they are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch

from longspan.core.actions import RunBatch, Segment


@dataclass(frozen=True, slots=True)
class SegmentRows:
    """Rows [start, stop) of this instance belong to the segment, and are tokens first, first + step, ...

    A segment has one of these on each instance that computes it, or several where it is cut into pieces.
    """

    segment: Segment
    start: int
    stop: int
    first: int
    step: int

    @property
    def last(self) -> int:
        """The position of the last of them."""
        return self.first + self.step * (self.stop - self.start - 1)


def rows_of(batch: RunBatch, instance: int) -> Iterator[SegmentRows]:
    """Yield an instance's rows of each segment, in the order in which they lie."""
    row = 0
    for segment in batch.segments:
        for first, count, step in segment.pieces(instance):
            yield SegmentRows(segment, row, row + count, first, step)
            row += count


def row_index(parts: list[SegmentRows], device: torch.device) -> slice | torch.Tensor:
    """Return what picks the rows of all parts: a slice where they lie side by side, which copies nothing."""
    if not parts:
        return slice(0, 0)
    if all(one.stop == next_.start for one, next_ in pairwise(parts)):
        return slice(parts[0].start, parts[-1].stop)
    return concat([torch.arange(part.start, part.stop) for part in parts], device)


def concat(parts: list[torch.Tensor], device: torch.device) -> torch.Tensor:
    """Return all indices (int64) one behind the other on the device; there may be none."""
    return torch.cat(parts).to(device) if parts else torch.zeros(0, dtype=torch.int64, device=device)
