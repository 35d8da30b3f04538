"""y = x W^T + b with the weight kept in groups of 32 inputs: scale * quant, or scale * quant + minimum.

These are GGUF's Q8_0 and Q4_1, of 8.5 and 5 bits a weight. Decoding at a small batch waits for weights to come from
memory, so that fewer bytes are less time; activations and sums are what they are elsewhere, and a product is exact.

Shape suffixes: T tokens, O outputs, I inputs, N groups of 32 inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from longspan.layers.linear import Linear
from longspan.native.library import best_library
from longspan.native.quantized_linear import GROUP, NativeQuantizedLinear, covers


@dataclass(frozen=True, slots=True)
class QuantizedMatrix:
    """A weight on the CPU, not yet packed for any kernel.

    quants: uint8, 0 .. 15, where there are minima; else int8. scales, minima: fp16.
    """

    quants_OI: Tensor
    scales_ON: Tensor
    minima_ON: Tensor | None = None

    @property
    def shape(self) -> torch.Size:
        return self.quants_OI.shape

    @classmethod
    def stacked(cls, parts: Sequence[QuantizedMatrix]) -> QuantizedMatrix | None:
        """Return all outputs in one matrix. None: the parts are of different formats."""
        minima = [part.minima_ON for part in parts if part.minima_ON is not None]
        if len(minima) not in (0, len(parts)):
            return None
        quants_OI = torch.cat([part.quants_OI for part in parts])
        scales_ON = torch.cat([part.scales_ON for part in parts])
        return cls(quants_OI, scales_ON, torch.cat(minima) if minima else None)

    def dequantised(self) -> Tensor:
        """Return the weight [O, I] in fp32, exactly."""
        weight_ONg = self.quants_OI.reshape(len(self.quants_OI), -1, GROUP) * self.scales_ON.float()[..., None]
        if self.minima_ON is not None:
            weight_ONg += self.minima_ON.float()[..., None]
        return weight_ONg.flatten(1)


def can_quantise(inputs: int) -> bool:
    """Tell whether groups are whole."""
    return inputs % GROUP == 0


def quantised_int8(weight_OI: Tensor) -> QuantizedMatrix:
    """Quantise as GGUF's Q8_0: in each group the largest weight becomes 127, or -127."""
    weight_ONg = weight_OI.float().reshape(len(weight_OI), -1, GROUP)
    scales_ON = (weight_ONg.abs().amax(dim=-1) / 127).half()
    # By the scale as it is stored. One that fp16 rounds to 0 is of a group that is nothing.
    divisors_ON1 = scales_ON.float().masked_fill(scales_ON == 0, 1.0)[..., None]
    quants_ONg = (weight_ONg / divisors_ON1).round_().clamp_(-127, 127).to(torch.int8)
    return QuantizedMatrix(quants_ONg.flatten(1), scales_ON)


class PlainQuantizedLinear:
    """The weight dequantised, all in fp32; the twin that tells what the kernel must compute."""

    rounds = False

    def __init__(self, weight: QuantizedMatrix, bias_O: Tensor | None = None) -> None:
        self.weight_OI = weight.dequantised()
        self.bias_O = None if bias_O is None else bias_O.float()

    def __call__(self, x_TI: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        return F.linear(x_TI.float(), self.weight_OI, self.bias_O).to(dtype or x_TI.dtype)


def quantized_kernels_serve(device: torch.device, dtype: torch.dtype) -> bool:
    """Tell whether our own kernels multiply quantised weights there, with activations of this dtype."""
    library = best_library() if device.type == "cpu" else None
    return library is not None and covers(library, dtype)


def quantized_linear(weight: QuantizedMatrix, dtype: torch.dtype, bias_O: Tensor | None = None) -> Linear:
    """Return the product by our own kernel, where `quantized_kernels_serve`. dtype: of x, bias and y."""
    library = best_library()
    if library is None or not covers(library, dtype):
        return PlainQuantizedLinear(weight, bias_O)
    return NativeQuantizedLinear(
        library, weight.quants_OI, weight.scales_ON, weight.minima_ON, dtype, bias_O
    )
