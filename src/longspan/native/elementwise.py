"""Norm, rotation, SwiGLU and the KV write, each in one call instead of several small torch operators.

Signatures and numbers are those of layers/ and of KVPool.write, which are the twins: a decode step of one token spends
much of its time starting operators. `covers` says whether the kernels take a model's sizes.

Shape suffixes: T tokens, h heads, D the normalised dimension, K head_dim, R = K/2, I the feed-forward width, G KV
heads, N slots.
"""

from __future__ import annotations

import torch
from torch import Tensor

from longspan.native.library import Library

_STEP = 64


def covers(dtype: torch.dtype, *sizes: int) -> bool:
    """Tell whether dtype is bf16 or fp32 and all sizes (hidden, head_dim, feed-forward) are multiples of 64."""
    return dtype in (torch.bfloat16, torch.float32) and not any(size % _STEP for size in sizes)


class NativeElementwise:
    """The elementwise kernels. All results are new and contiguous."""

    def __init__(self, library: Library) -> None:
        self.library = library

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Normalise x [T, D] with weight [D], or [T, h, D] with weight [D] or [h, D]; any strides but the last.

        x is fp32 or of the weight's dtype, which the result has.
        """
        out = torch.empty(x.shape, dtype=weight.dtype)
        self._norm(x, None, None, weight, out, eps)
        return out

    def add_and_norm(self, x_TD: Tensor, delta_TD: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """Return (x + delta, its norm): the residual and what the next matrix product takes."""
        sum_TD = torch.empty(x_TD.shape, dtype=x_TD.dtype)
        out_TD = torch.empty(x_TD.shape, dtype=weight_D.dtype)
        self._norm(x_TD, delta_TD.contiguous(), sum_TD, weight_D, out_TD, eps)
        return sum_TD, out_TD

    def _norm(
        self, x: Tensor, delta: Tensor | None, total: Tensor | None, weight: Tensor, out: Tensor, eps: float
    ) -> None:
        heads = x.shape[1] if x.dim() == 3 else 1
        weight = weight if weight.stride(-1) == 1 else weight.contiguous()
        self.library.rms_norm(
            x.data_ptr(), x.stride(0), x.stride(1) if heads > 1 else 0,
            None if delta is None else delta.data_ptr(), None if total is None else total.data_ptr(),
            weight.data_ptr(), weight.stride(0) if weight.dim() == 2 else 0,
            out.data_ptr(), x.shape[0], heads, x.shape[-1], eps, x.dtype == torch.bfloat16,
            weight.dtype == torch.bfloat16, torch.get_num_threads(),
        )  # fmt: skip

    def rotate(self, x_THK: Tensor, cos_T1R: Tensor, sin_T1R: Tensor) -> Tensor:
        """Turn every head by its token's angles (fp32, contiguous)."""
        out_THK = torch.empty(x_THK.shape, dtype=x_THK.dtype)
        self.library.rotate(
            x_THK.data_ptr(), x_THK.stride(0), x_THK.stride(1), cos_T1R.data_ptr(), sin_T1R.data_ptr(),
            out_THK.data_ptr(), *x_THK.shape, x_THK.dtype == torch.bfloat16, torch.get_num_threads(),
        )  # fmt: skip
        return out_THK

    def silu_and_mul(self, gate_up_T2I: Tensor) -> Tensor:
        """Compute SwiGLU: the first half of the columns gates the second."""
        tokens, width = gate_up_T2I.shape[0], gate_up_T2I.shape[1] // 2
        out_TI = torch.empty((tokens, width), dtype=gate_up_T2I.dtype)
        self.library.silu_and_mul(
            gate_up_T2I.data_ptr(), gate_up_T2I.stride(0), out_TI.data_ptr(), tokens, width,
            gate_up_T2I.dtype == torch.bfloat16, torch.get_num_threads(),
        )  # fmt: skip
        return out_TI

    def write_slots(self, pool_GNK: Tensor, slots_T: Tensor, x_TGK: Tensor) -> None:
        """Write pool[:, slots[t]] = x[t]. Slots: int64, contiguous. Raises IndexError where one is outside the pool."""
        failed = self.library.write_slots(
            x_TGK.data_ptr(), x_TGK.stride(0), x_TGK.stride(1), slots_T.data_ptr(),
            pool_GNK.data_ptr(), pool_GNK.stride(0), pool_GNK.stride(1), pool_GNK.shape[1], *x_TGK.shape,
            x_TGK.dtype == torch.bfloat16,
        )  # fmt: skip
        if failed:
            raise IndexError(f"a slot to write to is outside the pool's {pool_GNK.shape[1]}")
