"""y = x W^T + b with the weight packed for our own kernel (csrc/linear.h).

Shape suffixes: T tokens, O outputs, I inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from longspan.native.isa import Isa
from longspan.native.library import Library


def covers(library: Library, weight_OI: Tensor) -> bool:
    """Tell whether it runs: on a CPU, in fp32; in bf16 with instructions for pairs, and inputs in pairs."""
    if weight_OI.device.type != "cpu":
        return False
    if weight_OI.dtype == torch.bfloat16:
        return library.isa is Isa.AVX512_BF16 and weight_OI.shape[1] % 2 == 0
    return weight_OI.dtype == torch.float32


class NativeLinear:
    """`Linear` of layers/linear.py. The packed weight is a copy: the plain one can go, if nothing else reads it."""

    rounds = False

    def __init__(self, library: Library, weight_OI: Tensor, bias_O: Tensor | None = None) -> None:
        self.library = library
        self.outputs, self.inputs = weight_OI.shape
        self.dtype = weight_OI.dtype
        self.bias_O = bias_O
        is_bf16 = self.dtype == torch.bfloat16
        self.packed = torch.empty(library.packed_lanes(self.outputs, self.inputs, is_bf16), dtype=torch.int32)
        weight_OI = weight_OI.contiguous()
        library.pack_linear(weight_OI.data_ptr(), self.packed.data_ptr(), self.outputs, self.inputs, is_bf16)

    def __call__(self, x_TI: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Multiply. dtype: of the result, x's or fp32: sums are fp32 in any case."""
        x_TI = x_TI if x_TI.stride(-1) == 1 and x_TI.stride(0) % 2 == 0 else x_TI.contiguous()
        y_TO = torch.empty((len(x_TI), self.outputs), dtype=dtype or self.dtype)
        self.library.linear(
            x_TI.data_ptr(), x_TI.stride(0), self.packed.data_ptr(),
            None if self.bias_O is None else self.bias_O.data_ptr(), y_TO.data_ptr(), y_TO.dtype == torch.float32,
            len(x_TI), self.outputs, self.inputs, self.dtype == torch.bfloat16, torch.get_num_threads(),
        )  # fmt: skip
        return y_TO
