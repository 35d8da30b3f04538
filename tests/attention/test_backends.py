"""Each backend against its plain twin."""

from __future__ import annotations

import pytest
import torch

from longspan.attention.backend import PagedSegment
from longspan.attention.cpu import CpuBackend
from longspan.attention.partial import Partial, empty_partial, merge
from longspan.attention.reference import ReferenceBackend

HEADS, KV_HEADS, HEAD_DIM, SCALE = 9, 3, 64, 64**-0.5
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


def same(ours: Partial, twin: Partial, dtype: torch.dtype) -> None:
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(ours.out_THK.float(), twin.out_THK.float(), atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(ours.lse_TH, twin.lse_TH, atol=tolerance, rtol=tolerance)


@DTYPES
@pytest.mark.parametrize(("rows", "keys", "causal"), [(1, 1, True), (77, 77, True), (5, 130, False), (200, 3, False)])
def test_blocks(dtype: torch.dtype, rows: int, keys: int, causal: bool) -> None:
    q, k, v = (torch.randn(n, h, HEAD_DIM, dtype=dtype) for n, h in ((rows, HEADS), (keys, KV_HEADS), (keys, KV_HEADS)))
    ours, twin = (b.block(q, k, v, causal=causal, scale=SCALE) for b in (CpuBackend(), ReferenceBackend()))
    same(ours, twin, dtype)


@DTYPES
def test_rows_against_slots(dtype: torch.dtype) -> None:
    """Single rows of all lengths, a few rows, many rows, rows of nobody; slots in runs and scattered."""
    slots = 700
    k, v = (torch.randn(KV_HEADS, slots, HEAD_DIM, dtype=dtype) for _ in range(2))
    k[:, 0] = v[:, 0] = torch.nan  # of another request; nothing of it may be seen
    segments, row = [], 0
    for rows, length in [(1, 1), (1, 9), (1, 10), (1, 300), (1, 290), (7, 50), (40, 600), (1, 650)]:
        where = torch.arange(30, 30 + length) if length % 2 else 1 + torch.randperm(slots - 1)[:length]
        segments.append(PagedSegment(row, row + rows, where))
        row += rows + 1  # and one row that sees nothing
    q = torch.randn(row, HEADS, HEAD_DIM, dtype=dtype)
    ours, twin = (b.plan_paged(segments).attend(q, k, v, SCALE) for b in (CpuBackend(), ReferenceBackend()))
    same(ours, twin, dtype)
    assert (ours.lse_TH[1] == -torch.inf).all() and not ours.out_THK[1].any()


def test_empty_shards_weigh_nothing() -> None:
    q = torch.randn(3, HEADS, HEAD_DIM)
    k, v = torch.randn(8, KV_HEADS, HEAD_DIM), torch.randn(8, KV_HEADS, HEAD_DIM)
    part, empty = ReferenceBackend().block(q, k, v, causal=False, scale=SCALE), empty_partial(q)
    same(merge(part, empty), part, torch.float32)
    same(merge(empty, part), part, torch.float32)
    nothing = merge(empty, empty)
    assert not nothing.out_THK.any() and (nothing.lse_TH == -torch.inf).all()
