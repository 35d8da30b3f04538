"""y = x W^T + b, with the weight laid out as the device multiplies fastest.

On a CPU our own kernel (native/csrc/linear.h) reads a packed weight in order: at one row, where memory is
the limit, it is 1.4 to 1.9 times as fast as oneDNN with a packed weight of its own, and no slower at any number of
rows. That in turn is about twice as fast as `F.linear`, which lays the weight out anew at every call.

Shape suffixes: T tokens, O outputs, I inputs.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from longspan.native.library import best_library
from longspan.native.linear import NativeLinear, covers


class Linear(Protocol):
    """A linear layer.

    rounds: results in fp32 went through the weight's dtype on the way.
    """

    rounds: bool

    def __call__(self, x_TI: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Compute y_TO, in x's dtype or the one given."""
        ...


class PlainLinear:
    """The weight as it is; the twin that tells what the other kinds must compute."""

    rounds = True

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None = None) -> None:
        self.weight_OI = weight_OI
        self.bias_O = bias_O

    def __call__(self, x_TI: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        return F.linear(x_TI, self.weight_OI, self.bias_O).to(dtype or x_TI.dtype)


class PackedLinear:
    """The weight in oneDNN's blocked layout. It is a copy: the plain one can go, if nothing else reads it."""

    rounds = True

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None = None) -> None:
        self.packed_OI = torch.ops.mkldnn._reorder_linear_weight(weight_OI)
        self.bias_O = bias_O

    def __call__(self, x_TI: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        y_TO: Tensor = torch.ops.mkldnn._linear_pointwise(x_TI, self.packed_OI, self.bias_O, "none", [], "")
        return y_TO.to(dtype or x_TI.dtype)


def linear(weight_OI: Tensor, bias_O: Tensor | None = None) -> Linear:
    """Return the fastest of the twins for this weight's device and dtype."""
    library = best_library() if weight_OI.device.type == "cpu" else None
    if library and covers(library, weight_OI):
        return NativeLinear(library, weight_OI, bias_O)
    return (PackedLinear if _can_pack(weight_OI) else PlainLinear)(weight_OI, bias_O)


def _can_pack(weight: Tensor) -> bool:
    if weight.device.type != "cpu" or not torch._C._has_mkldnn:
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32
