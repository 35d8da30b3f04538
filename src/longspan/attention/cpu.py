"""Attention on a CPU through torch's own kernels.

Blocks of many rows go through torch's flash attention; a few rows against a long context (decode) go through
batched matrix products, because the flash kernel is many times slower there in bf16.

Shapes as in backend.py, and B requests, R query rows of one KV head (rows x H/G).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from longspan.attention.backend import PagedPlan, PagedSegment
from longspan.attention.partial import Partial, empty_partial, merge_rows_

_FEW_ROWS = 16  # up to here matrix products win over the flash kernel
_PADDING = 1.25  # decode requests whose contexts differ by no more than this factor share one padded product


class CpuBackend:
    """`AttentionBackend` for CPUs."""

    merge_rows_ = staticmethod(merge_rows_)

    def block(
        self, q_THK: torch.Tensor, k_SGK: torch.Tensor, v_SGK: torch.Tensor, *, causal: bool, scale: float
    ) -> Partial:
        # The kernel kills the process on empty input (pytorch #141219), and masks rectangles top-left.
        assert q_THK.shape[0] and k_SGK.shape[0], "empty block"
        assert not causal or q_THK.shape[0] == k_SGK.shape[0], "causal blocks are square"
        out_1HTK, lse_1HT = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            *(x.transpose(0, 1).unsqueeze(0) for x in (q_THK, k_SGK, v_SGK)), 0.0, causal, scale=scale
        )
        return Partial(out_1HTK[0].transpose(0, 1), lse_1HT[0].transpose(0, 1))

    def plan_paged(self, segments: Sequence[PagedSegment]) -> PagedPlan:
        return _CpuPlan(self, segments)


class _CpuPlan:
    """Decode rows in buckets of like context length; everything else segment by segment."""

    def __init__(self, backend: CpuBackend, segments: Sequence[PagedSegment]) -> None:
        self.backend = backend
        single = sorted((s for s in segments if s.stop - s.start == 1), key=lambda s: len(s.slots))
        self.several = [(s, _Keys(s.slots)) for s in segments if s.stop - s.start > 1]
        self.buckets: list[_Bucket] = []
        while single:
            limit = len(single[0].slots) * _PADDING + 16
            size = sum(1 for s in single if len(s.slots) <= limit)
            self.buckets.append(_Bucket(single[:size]))
            single = single[size:]

    def attend(self, q_THK: torch.Tensor, k_GNK: torch.Tensor, v_GNK: torch.Tensor, scale: float) -> Partial:
        result = empty_partial(q_THK)
        for bucket in self.buckets:
            out, lse = bucket.attend(q_THK, k_GNK, v_GNK, scale)
            result.out_THK[bucket.rows] = out.float()
            result.lse_TH[bucket.rows] = lse
        for segment, keys in self.several:
            rows = slice(segment.start, segment.stop)
            k_GSK, v_GSK = keys.of(k_GNK), keys.of(v_GNK)
            if segment.stop - segment.start <= _FEW_ROWS:
                out, lse = _few_rows(q_THK[rows], k_GSK, v_GSK, scale)
            else:
                out, lse = self.backend.block(
                    q_THK[rows], k_GSK.transpose(0, 1), v_GSK.transpose(0, 1), causal=False, scale=scale
                )
            result.out_THK[rows] = out
            result.lse_TH[rows] = lse
        return result


class _Keys:
    """The slots of one request; a view of the pool where they are consecutive, a gathered copy elsewhere."""

    def __init__(self, slots: torch.Tensor) -> None:
        self.slots = slots
        first, last = int(slots[0]), int(slots[-1])
        consecutive = last - first == len(slots) - 1 and bool((slots.diff() == 1).all())
        self.run = slice(first, last + 1) if consecutive else None

    def of(self, cache_GNK: torch.Tensor) -> torch.Tensor:
        return cache_GNK.index_select(1, self.slots) if self.run is None else cache_GNK[:, self.run]


class _Bucket:
    """Decode rows of B requests, their contexts padded to the longest, S."""

    def __init__(self, segments: Sequence[PagedSegment]) -> None:
        self.rows = torch.tensor([s.start for s in segments])
        lengths_B = torch.tensor([len(s.slots) for s in segments])
        self.longest = int(lengths_B.max())
        positions_S = torch.arange(self.longest)
        # Padded with a slot of one's own: a weight of 0 does not help against NaN in another request's.
        slots = [s.slots[positions_S.clamp(max=len(s.slots) - 1)] for s in segments]
        self.keys = _Keys(segments[0].slots if len(segments) == 1 else torch.cat(slots))
        padding_BS = positions_S >= lengths_B[:, None]
        self.padding_B1S = padding_BS[:, None, :] if bool(padding_BS.any()) else None

    def attend(
        self, q_THK: torch.Tensor, k_GNK: torch.Tensor, v_GNK: torch.Tensor, scale: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        rows, (heads, head_dim), groups = len(self.rows), q_THK.shape[1:], k_GNK.shape[0]
        q_GBRK = q_THK[self.rows].view(rows, groups, heads // groups, head_dim).transpose(0, 1)
        k_GBSK, v_GBSK = (
            self.keys.of(cache).view(groups, rows, self.longest, head_dim) for cache in (k_GNK, v_GNK)
        )
        scores_GBRS = torch.matmul(q_GBRK, k_GBSK.transpose(2, 3)).float().mul_(scale)
        if self.padding_B1S is not None:
            scores_GBRS.masked_fill_(self.padding_B1S, -torch.inf)
        out_GBRK, lse_GBR = _softmax_times(scores_GBRS, v_GBSK)
        return (
            out_GBRK.transpose(0, 1).reshape(rows, heads, head_dim),
            lse_GBR.transpose(0, 1).reshape(rows, heads),
        )


def _few_rows(
    q_THK: torch.Tensor, k_GSK: torch.Tensor, v_GSK: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    rows, heads, head_dim = q_THK.shape
    groups = k_GSK.shape[0]
    q_GTRK = q_THK.view(rows, groups, heads // groups, head_dim).transpose(0, 1)
    scores_GRS = torch.bmm(q_GTRK.reshape(groups, -1, head_dim), k_GSK.transpose(1, 2)).float().mul_(scale)
    out_GRK, lse_GR = _softmax_times(scores_GRS, v_GSK)
    return (
        out_GRK.view(groups, rows, -1, head_dim).transpose(0, 1).reshape(rows, heads, head_dim),
        lse_GR.view(groups, rows, -1).transpose(0, 1).reshape(rows, heads),
    )


def _softmax_times(scores: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """softmax(scores) @ v and the log-sum-exp of the scores. scores: [..., R, S] fp32; overwritten."""
    lse = scores.logsumexp(dim=-1)
    weights = scores.sub_(lse.unsqueeze(-1)).exp_()
    return torch.matmul(weights.to(v.dtype), v), lse
