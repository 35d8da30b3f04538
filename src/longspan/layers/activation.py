"""Shape suffixes: T tokens, I the feed-forward width."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def silu_and_mul(gate_up_T2I: Tensor) -> Tensor:
    """Compute SwiGLU: the first half of the columns gates the second."""
    gate_TI, up_TI = gate_up_T2I.chunk(2, dim=-1)
    return F.silu(gate_TI).mul_(up_TI)
