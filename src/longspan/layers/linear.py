"""y = x W^T + b, with the weight laid out as the device multiplies fastest.

On a CPU, oneDNN lays a weight out anew at every call unless it was packed once: packed bf16 is about twice as
fast for the few rows of a decode step (49152 x 576, one row, one core: 2.7 ms against 6.0), and never slower.

Shape suffixes: T tokens, O outputs, I inputs.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class Linear(Protocol):
    def __call__(self, x_TI: Tensor) -> Tensor: ...


class PlainLinear:
    """The weight as it is; the twin that tells what `PackedLinear` must compute."""

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None = None) -> None:
        self.weight_OI = weight_OI
        self.bias_O = bias_O

    def __call__(self, x_TI: Tensor) -> Tensor:
        return F.linear(x_TI, self.weight_OI, self.bias_O)


class PackedLinear:
    """The weight in oneDNN's blocked layout. It is a copy: the plain one can go, if nobody else reads it."""

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None = None) -> None:
        self.packed_OI = torch.ops.mkldnn._reorder_linear_weight(weight_OI)
        self.bias_O = bias_O

    def __call__(self, x_TI: Tensor) -> Tensor:
        y_TO: Tensor = torch.ops.mkldnn._linear_pointwise(x_TI, self.packed_OI, self.bias_O, "none", [], "")
        return y_TO


def linear(weight_OI: Tensor, bias_O: Tensor | None = None) -> Linear:
    """The fastest of the twins for this weight's device and dtype."""
    return (PackedLinear if _can_pack(weight_OI) else PlainLinear)(weight_OI, bias_O)


def _can_pack(weight: Tensor) -> bool:
    if weight.device.type != "cpu" or not torch._C._has_mkldnn:
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32
