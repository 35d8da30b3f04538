"""The seam between elastic attention and the kernels of a device.

Shapes: T query rows, S keys, N slots of the pool, H query heads, G KV heads (H a multiple of G), K head_dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from longspan.attention.partial import Partial


@dataclass(frozen=True, slots=True)
class PagedSegment:
    """Query rows [start, stop) attend to every key in `slots` (int64 [S], S >= 1), without a mask."""

    start: int
    stop: int
    slots: torch.Tensor


class PagedPlan(Protocol):
    """The plan that a backend makes once for a batch, and uses in every layer."""

    def attend(self, q_THK: torch.Tensor, k_GNK: torch.Tensor, v_GNK: torch.Tensor, scale: float) -> Partial:
        """Compute attention of q over the pool's k and v. Rows outside every segment are empty partials."""
        ...


class AttentionBackend(Protocol):
    """Kernels with log-sum-exp; none of them is ever called with an empty query or key block."""

    def block(
        self, q_THK: torch.Tensor, k_SGK: torch.Tensor, v_SGK: torch.Tensor, *, causal: bool, scale: float
    ) -> Partial:
        """Compute dense attention of one segment. `causal` (T = S): row i sees keys 0..i."""
        ...

    def plan_paged(self, segments: Sequence[PagedSegment]) -> PagedPlan:
        """Prepare attention of rows over slots of the pool."""
        ...

    def merge_rows_(self, result: Partial, rows: slice | torch.Tensor, part: Partial) -> None:
        """Merge a part into these rows of the result, in place; as `merge_rows_` in attention/partial.py."""
        ...
