"""y = x W^T + b with the weight kept in groups of 4 or 8 bit quants (csrc/quantized_linear.h).

Shape suffixes: T tokens, O outputs, I inputs, N groups of 32 inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from longspan.native.isa import Isa
from longspan.native.library import Library

GROUP = 32
"""Inputs that share a scale; `kGroup` in csrc/quantized_linear.h."""


def covers(library: Library, dtype: torch.dtype) -> bool:
    """Tell whether the kernels take it: activations in fp32; in bf16 where the processor multiplies pairs of them."""
    return dtype == torch.float32 or (dtype == torch.bfloat16 and library.isa is Isa.AVX512_BF16)


class NativeQuantizedLinear:
    """`Linear` of layers/linear.py. The packed weight is a copy: the plain one can go.

    quants: uint8, 0 .. 15, with fp16 minima; or int8, without. scales: fp16. dtype: of x, bias and y.
    """

    rounds = False

    def __init__(
        self, library: Library, quants_OI: Tensor, scales_ON: Tensor, minima_ON: Tensor | None, dtype: torch.dtype,
        bias_O: Tensor | None = None,
    ) -> None:  # fmt: skip
        self.library = library
        self.outputs, self.inputs = quants_OI.shape
        assert self.inputs % GROUP == 0, "whole groups only"
        self.dtype = dtype
        self.bits = 8 if minima_ON is None else 4
        self.bias_O = bias_O
        shape = self.outputs, self.inputs, self.bits, dtype == torch.bfloat16
        self.packed = torch.zeros(library.quantized_lanes(*shape), dtype=torch.int32)
        tensors = [None if x is None else x.contiguous() for x in (quants_OI, scales_ON, minima_ON)]
        library.pack_quantized(*(None if x is None else x.data_ptr() for x in tensors), self.packed.data_ptr(), *shape)

    def __call__(self, x_TI: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Multiply. dtype: of the result, x's or fp32: sums are fp32 in any case."""
        x_TI = x_TI if x_TI.stride(-1) == 1 and x_TI.stride(0) % 2 == 0 else x_TI.contiguous()
        y_TO = torch.empty((len(x_TI), self.outputs), dtype=dtype or self.dtype)
        self.library.quantized_linear(
            x_TI.data_ptr(), x_TI.stride(0), self.packed.data_ptr(),
            None if self.bias_O is None else self.bias_O.data_ptr(), y_TO.data_ptr(), y_TO.dtype == torch.float32,
            len(x_TI), self.outputs, self.inputs, self.bits, self.dtype == torch.bfloat16, torch.get_num_threads(),
        )  # fmt: skip
        return y_TO
