"""The policy `longspan` in a pipeline: its batches have alike many decodes."""

from __future__ import annotations

from math import ceil

import pytest

from longspan.core.actions import RunBatch

from .longspan import arrival, plain, played

FEW, NUM = 4, 48


def decodes(batch: RunBatch) -> int:
    return sum(segment.length == 1 for segment in batch.segments)


def crowd(stages: int, policy: str) -> tuple[float, list[int]]:
    """Requests that begin to decode in one batch; returns the longest of their mean gaps, seconds, and how many decodes
    each batch had once they were through the pipeline once."""
    arrivals = [arrival(0.0, f"r{n}", 1, 200) for n in range(NUM)]
    run = played(arrivals, plain(1, per_request=1e-3), pp=stages, policy=policy)
    times = [request.token_times for request in run.played.values()]
    begun, ended = max(those[4] for those in times), min(those[-1] for those in times)
    gap_s = max((those[-1] - those[0]) / (len(those) - 1) for those in times)
    return gap_s, [decodes(batch) for at, batch, _ in run.took if begun < at < ended - 0.1]


@pytest.mark.parametrize("stages", [2, 4, 8])
def test_decodes_are_shared_out_among_the_batches(stages: int) -> None:
    """No batch has more than its share, so that the stages work at the same time."""
    shared_s, shared = crowd(stages, "longspan")
    together_s, together = crowd(stages, "longspan:spread_decodes=false")
    assert max(shared) <= max(FEW, ceil(NUM / stages)) and max(together) >= NUM - 1
    assert shared_s < 0.8 * together_s


def test_one_stage_takes_all_at_once() -> None:
    _, found = crowd(1, "longspan")
    assert set(found) == {NUM}
