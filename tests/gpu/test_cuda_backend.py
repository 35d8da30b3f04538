"""The CUDA backend on a GPU that the CPU pretends to be: its gathers, edges and scatters with real values."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan.attention.backend import PagedSegment
from longspan.attention.cuda import CudaBackend
from longspan.attention.reference import ReferenceBackend
from longspan.core.actions import RunBatch
from tests.attention.test_elastic import Place, batches, make_truth, run_everywhere
from tests.gpu.pretend_gpu import DEVICE, PretendGPU

GPU = Place(DEVICE, torch.bfloat16, PretendGPU, tolerance=4e-2)


@settings(max_examples=25)
@given(case=batches(), seed=st.integers(0, 2**31))
def test_any_plan_is_exact_to_bfloat16(case: tuple[RunBatch, int], seed: int) -> None:
    batch, num_instances = case
    truth = make_truth(batch, seed)
    for side in (truth.q, truth.k, truth.v):
        side.update({name: values.bfloat16().float() for name, values in side.items()})
    run_everywhere(batch, truth, num_instances, CudaBackend(), GPU)


@pytest.mark.parametrize(
    "lengths", [[(1, 9), (1, 300)], [(1, 1), (7, 50), (1, 80), (40, 600)]], ids=["decode", "mixed"]
)
def test_rows_against_shuffled_slots(lengths: list[tuple[int, int]]) -> None:
    """What no segment names is NaN, and rows of no segment are empty."""
    slots = torch.randperm(2000)
    k, v = (torch.full((2, 2000, 32), torch.nan, dtype=torch.bfloat16) for _ in "kv")
    segments, row, taken = [], 0, 0
    for rows, keys in lengths:
        mine = slots[taken : taken + keys]
        k[:, mine], v[:, mine] = torch.randn(2, keys, 32).bfloat16(), torch.randn(2, keys, 32).bfloat16()
        segments.append(PagedSegment(row, row + rows, mine))
        row, taken = row + rows + 1, taken + keys
    q = torch.randn(row, 6, 32).bfloat16()
    twin = ReferenceBackend().plan_paged(segments).attend(q, k, v, 0.2)
    with PretendGPU():
        moved = [PagedSegment(s.start, s.stop, s.slots.to(DEVICE)) for s in segments]
        ours = CudaBackend().plan_paged(moved).attend(*(x.to(DEVICE) for x in (q, k, v)), 0.2)
        out, lse = ours.out_THK.cpu(), ours.lse_TH.cpu()
    torch.testing.assert_close(out, twin.out_THK, atol=2e-2, rtol=2e-2)
    torch.testing.assert_close(lse, twin.lse_TH, atol=1e-4, rtol=1e-4)
