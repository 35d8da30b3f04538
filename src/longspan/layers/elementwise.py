"""What lies between the matrix products of a layer: our own kernels where they run, else the plain twins.

Shape suffixes: T tokens, D hidden, K head_dim, R = K/2, I the feed-forward width.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from longspan.layers.activation import silu_and_mul
from longspan.layers.norm import rms_norm
from longspan.layers.rotary import rotate
from longspan.native.elementwise import NativeElementwise, covers
from longspan.native.library import best_library


class Elementwise(Protocol):
    """Signatures and numbers of `PlainElementwise`."""

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor: ...

    def add_and_norm(self, x_TD: Tensor, delta_TD: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]: ...

    def rotate(self, x_THK: Tensor, cos_T1R: Tensor, sin_T1R: Tensor) -> Tensor: ...

    def silu_and_mul(self, gate_up_T2I: Tensor) -> Tensor: ...


class PlainElementwise:
    """torch's operators, one after the other."""

    rms_norm = staticmethod(rms_norm)
    rotate = staticmethod(rotate)
    silu_and_mul = staticmethod(silu_and_mul)

    def add_and_norm(self, x_TD: Tensor, delta_TD: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """Return (x + delta, its norm): the residual and what the next matrix product takes."""
        sum_TD = x_TD + delta_TD
        return sum_TD, rms_norm(sum_TD, weight_D, eps)


def elementwise_for(device: torch.device, dtype: torch.dtype, *sizes: int) -> Elementwise:
    """Return the fastest that runs there. sizes: the model's hidden size, head_dim and feed-forward width."""
    library = best_library() if device.type == "cpu" and covers(dtype, *sizes) else None
    return NativeElementwise(library) if library else PlainElementwise()
