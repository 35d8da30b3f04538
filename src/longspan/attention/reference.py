"""The plain twin of every backend: attention as the formula says, in fp32. Slow, and easy to believe.

Shapes as in backend.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from longspan.attention.backend import PagedPlan, PagedSegment
from longspan.attention.partial import Partial, empty_partial, merge_rows_


class ReferenceBackend:
    """`AttentionBackend` by matrix products that hold every score in memory."""

    merge_rows_ = staticmethod(merge_rows_)

    def block(
        self, q_THK: torch.Tensor, k_SGK: torch.Tensor, v_SGK: torch.Tensor, *, causal: bool, scale: float
    ) -> Partial:
        group = q_THK.shape[1] // k_SGK.shape[1]
        k_HSK = k_SGK.float().repeat_interleave(group, dim=1).transpose(0, 1)
        v_HSK = v_SGK.float().repeat_interleave(group, dim=1).transpose(0, 1)
        scores_HTS = q_THK.float().transpose(0, 1) @ k_HSK.transpose(1, 2) * scale
        if causal:
            visible_TS = torch.ones(scores_HTS.shape[1:], dtype=torch.bool, device=q_THK.device).tril()
            scores_HTS = scores_HTS.masked_fill(~visible_TS, -torch.inf)
        lse_HT = scores_HTS.logsumexp(dim=-1)
        out_HTK = torch.exp(scores_HTS - lse_HT.unsqueeze(-1)) @ v_HSK
        return Partial(out_HTK.transpose(0, 1), lse_HT.transpose(0, 1))

    def plan_paged(self, segments: Sequence[PagedSegment]) -> PagedPlan:
        return _ReferencePlan(self, segments)


class _ReferencePlan:
    def __init__(self, backend: ReferenceBackend, segments: Sequence[PagedSegment]) -> None:
        self.backend = backend
        self.segments = segments

    def attend(self, q_THK: torch.Tensor, k_GNK: torch.Tensor, v_GNK: torch.Tensor, scale: float) -> Partial:
        result = empty_partial(q_THK)
        for segment in self.segments:
            rows = slice(segment.start, segment.stop)
            k_SGK, v_SGK = (cache[:, segment.slots].transpose(0, 1) for cache in (k_GNK, v_GNK))
            part = self.backend.block(q_THK[rows], k_SGK, v_SGK, causal=False, scale=scale)
            result.out_THK[rows] = part.out_THK
            result.lse_TH[rows] = part.lse_TH
        return result
