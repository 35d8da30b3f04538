"""What is tried. A new kernel joins by one line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from case import NotHereError
from longspan.attention.backend import AttentionBackend
from longspan.attention.cpu import CpuBackend
from longspan.attention.cuda import CudaBackend
from longspan.attention.partial import Partial
from longspan.attention.reference import ReferenceBackend
from longspan.layers.elementwise import Elementwise, PlainElementwise


class Block(Protocol):
    """`AttentionBackend.block`."""

    def __call__(
        self, q_THK: torch.Tensor, k_SGK: torch.Tensor, v_SGK: torch.Tensor, *, causal: bool, scale: float
    ) -> Partial: ...


@dataclass(frozen=True)
class Attention:
    """fast: for the shapes of a real model too."""

    backend: Callable[[], AttentionBackend]
    devices: tuple[str, ...]
    dtypes: tuple[torch.dtype, ...]
    fast: bool = True


def cudnn_block(
    q_THK: torch.Tensor, k_SGK: torch.Tensor, v_SGK: torch.Tensor, *, causal: bool, scale: float
) -> Partial:
    """cuDNN's attention as torch brings it. It takes as many KV heads as query heads divide into."""
    if q_THK.device.type != "cuda":
        raise NotHereError("cuDNN's attention needs a GPU")
    q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q_THK, k_SGK, v_SGK))
    out, lse, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(
        q, k, v, None, True, 0.0, causal, False, scale=scale
    )
    return Partial(out[0].transpose(0, 1), lse.reshape(q_THK.shape[1], q_THK.shape[0]).transpose(0, 1))


FLOATS = (torch.float32, torch.bfloat16)
ATTENTION: dict[str, Attention] = {
    "torch flash": Attention(CudaBackend, ("cuda",), (torch.bfloat16,)),
    "torch cpu": Attention(CpuBackend, ("cpu",), FLOATS),
    "reference": Attention(ReferenceBackend, ("cuda", "cpu"), FLOATS, fast=False),
}
BLOCKS: dict[str, Block] = {
    "cudnn": cudnn_block,
}
ELEMENTWISE: dict[str, Callable[[], Elementwise]] = {
    "plain": PlainElementwise,
}


def attention_here(device: torch.device) -> dict[str, Attention]:
    return {name: subject for name, subject in ATTENTION.items() if device.type in subject.devices}
