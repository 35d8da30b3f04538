"""Partial attention results, and their exact merge.

Attention over a set of keys that is split in shards is the mean of the shards' outputs weighted by the exponential
of their log-sum-exps (FlashAttention's online softmax across devices; LoongServe section 4.2). An empty shard has
log-sum-exp -inf and weighs nothing.

Shapes: T query rows, H query heads, K head_dim.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import torch


class Partial(NamedTuple):
    """Attention of query rows over some of their keys. out_THK: normalised; lse_TH: fp32, natural log."""

    out_THK: torch.Tensor
    lse_TH: torch.Tensor


MergeRows: TypeAlias = Callable[[Partial, slice | torch.Tensor, Partial], None]


def empty_partial(q_THK: torch.Tensor) -> Partial:
    """Return what attention over no keys gives: weight exp(-inf) = 0, never uninitialised memory. fp32."""
    return Partial(
        torch.zeros(q_THK.shape, device=q_THK.device),
        torch.full(q_THK.shape[:2], -torch.inf, device=q_THK.device),
    )


def merge(first: Partial, second: Partial) -> Partial:
    """Return the attention over the union of two disjoint sets of keys, in fp32."""
    lse_TH = torch.logaddexp(first.lse_TH, second.lse_TH)
    # Both empty: -inf - -inf is nan; the weights are 0 and the result is empty again.
    w1_TH1 = torch.exp(first.lse_TH - lse_TH).nan_to_num_(nan=0.0).unsqueeze(-1)
    w2_TH1 = torch.exp(second.lse_TH - lse_TH).nan_to_num_(nan=0.0).unsqueeze(-1)
    return Partial(first.out_THK.float() * w1_TH1 + second.out_THK.float() * w2_TH1, lse_TH)


def merge_rows_(result: Partial, rows: slice | torch.Tensor, part: Partial) -> None:
    """Merge a part into these rows of the result (fp32), in place."""
    merged = merge(Partial(result.out_THK[rows], result.lse_TH[rows]), part)
    result.out_THK[rows] = merged.out_THK
    result.lse_TH[rows] = merged.lse_TH


class Accumulator:
    """The running result of a batch's T rows while partial results come in, in fp32.

    A first result that covers all rows is taken as it is: most batches need no other, and no copy.
    merge_rows_: the function of that name, or a backend's own.
    """

    def __init__(self, q_THK: torch.Tensor, merge_rows_: MergeRows = merge_rows_) -> None:
        self._q_THK = q_THK
        self._merge_rows_ = merge_rows_
        self._result: Partial | None = None

    def set(self, rows: slice, partial: Partial) -> None:
        """Set the first result of these rows."""
        if self._result is None and rows.stop - rows.start == len(self._q_THK):
            self._result = partial
            return
        result = self._writable()
        result.out_THK[rows] = partial.out_THK
        result.lse_TH[rows] = partial.lse_TH

    def add(self, rows: slice | torch.Tensor, partial: Partial) -> None:
        """Add one more result of these rows, over keys that they have not seen yet."""
        self._merge_rows_(self._writable(), rows, partial)

    @property
    def out_THK(self) -> torch.Tensor:
        return self._writable().out_THK if self._result is None else self._result.out_THK

    def _writable(self) -> Partial:
        if self._result is None:
            self._result = empty_partial(self._q_THK)
        elif self._result.out_THK.dtype != torch.float32:
            self._result = Partial(self._result.out_THK.float(), self._result.lse_TH)
        return self._result
