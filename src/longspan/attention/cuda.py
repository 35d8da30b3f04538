"""Attention on a GPU through torch's own flash attention, bf16 and fp16.

Shapes as in backend.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from longspan.attention.backend import PagedPlan, PagedSegment
from longspan.attention.partial import Partial, empty_partial, merge_rows_


class CudaBackend:
    """`AttentionBackend` for CUDA devices."""

    merge_rows_ = staticmethod(merge_rows_)

    def block(
        self, q_THK: torch.Tensor, k_SGK: torch.Tensor, v_SGK: torch.Tensor, *, causal: bool, scale: float
    ) -> Partial:
        assert not causal or q_THK.shape[0] == k_SGK.shape[0], "causal blocks are square"
        edges_q, edges_k = (
            torch.tensor([0, x.shape[0]], dtype=torch.int32, device=q_THK.device) for x in (q_THK, k_SGK)
        )
        return _varlen(q_THK, k_SGK, v_SGK, edges_q, edges_k, q_THK.shape[0], k_SGK.shape[0], causal, scale)

    def plan_paged(self, segments: Sequence[PagedSegment]) -> PagedPlan:
        return _CudaPlan(segments)


class _CudaPlan:
    """All segments in one gather and one ragged kernel."""

    def __init__(self, segments: Sequence[PagedSegment]) -> None:
        self.slots = torch.cat([s.slots for s in segments])
        device = self.slots.device
        rows = [torch.arange(s.start, s.stop) for s in segments]
        self.rows = torch.cat(rows).to(device)
        self.longest_q = max(len(r) for r in rows)
        self.longest_k = max(len(s.slots) for s in segments)
        self.edges_q = _edges([len(r) for r in rows], device)
        self.edges_k = _edges([len(s.slots) for s in segments], device)

    def attend(self, q_THK: torch.Tensor, k_GNK: torch.Tensor, v_GNK: torch.Tensor, scale: float) -> Partial:
        k_SGK, v_SGK = (cache.index_select(1, self.slots).transpose(0, 1) for cache in (k_GNK, v_GNK))
        part = _varlen(
            q_THK[self.rows], k_SGK, v_SGK, self.edges_q, self.edges_k,
            self.longest_q, self.longest_k, False, scale,
        )  # fmt: skip
        result = empty_partial(q_THK)
        result.out_THK[self.rows] = part.out_THK.float()
        result.lse_TH[self.rows] = part.lse_TH
        return result


def _edges(lengths: Sequence[int], device: torch.device) -> torch.Tensor:
    return torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32).to(device)


def _varlen(
    q_THK: torch.Tensor,
    k_SGK: torch.Tensor,
    v_SGK: torch.Tensor,
    edges_q: torch.Tensor,
    edges_k: torch.Tensor,
    longest_q: int,
    longest_k: int,
    causal: bool,
    scale: float,
) -> Partial:
    out_THK, lse_HT, *_ = torch.ops.aten._flash_attention_forward(
        q_THK, k_SGK, v_SGK, edges_q, edges_k, longest_q, longest_k, 0.0, causal, False, scale=scale
    )
    assert lse_HT.shape == (q_THK.shape[1], q_THK.shape[0]), lse_HT.shape
    return Partial(out_THK, lse_HT.transpose(0, 1))
