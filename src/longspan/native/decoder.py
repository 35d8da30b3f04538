"""All decoder layers of a decode step in one call (csrc/decoder.h).

A step of one token is a few hundred small kernels; calling each from Python takes about as long as they do.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from longspan.native.elementwise import covers as elementwise_covers
from longspan.native.library import (
    DecoderLayerStruct,
    DecodeStepStruct,
    Library,
    MatrixStruct,
    SegmentStruct,
    best_library,
)
from longspan.native.linear import NativeLinear
from longspan.native.quantized_linear import NativeQuantizedLinear

NativeMatrix = NativeLinear | NativeQuantizedLinear
MOST_HEAD_DIM = 256  # csrc/kv_rows.h


class LayerWeights(Protocol):
    """One decoder layer; `LlamaLayer` of models/llama.py. Matrices are `Linear` of layers/linear.py."""

    @property
    def attention_norm_D(self) -> Tensor: ...

    @property
    def qkv(self) -> object: ...

    @property
    def qk_norm_hK(self) -> Tensor | None: ...

    @property
    def attention_out(self) -> object: ...

    @property
    def mlp_norm_D(self) -> Tensor: ...

    @property
    def gate_up(self) -> object: ...

    @property
    def down(self) -> object: ...


class LocalPool(Protocol):
    """The KV pool: k_GNK and v_GNK by layer."""

    def layer(self, layer: int) -> tuple[Tensor, Tensor]: ...


class NativeDecoder:
    """Decoder layers of one device, whose weights our own kernels read. See `of`."""

    def __init__(self, library: Library, layers: Sequence[LayerWeights], heads: int, kv_heads: int, eps: float) -> None:
        self.library = library
        self.layers = layers
        self.heads, self.kv_heads, self.eps = heads, kv_heads, eps
        self.dtype = layers[0].attention_norm_D.dtype
        self._pool: LocalPool | None = None
        self._structs = (DecoderLayerStruct * len(layers))(*(_layer_struct(layer) for layer in layers))

    @classmethod
    def of(
        cls, layers: Sequence[LayerWeights], heads: int, kv_heads: int, head_dim: int, intermediate: int, eps: float
    ) -> NativeDecoder | None:
        """None where some of it needs other kernels: there layers run one after the other."""
        norm_D = layers[0].attention_norm_D
        library = best_library() if norm_D.device.type == "cpu" else None
        matrices = [m for layer in layers for m in (layer.qkv, layer.attention_out, layer.gate_up, layer.down)]
        if library is None or not all(isinstance(matrix, NativeMatrix) for matrix in matrices):
            return None
        if not elementwise_covers(norm_D.dtype, len(norm_D), head_dim, intermediate) or head_dim > MOST_HEAD_DIM:
            return None
        return cls(library, layers, heads, kv_heads, eps)

    def __call__(
        self,
        x_TD: Tensor,
        cos_T1R: Tensor,
        sin_T1R: Tensor,
        pool: LocalPool,
        slots_T: Tensor,
        segments: ctypes.Array[SegmentStruct],
        scale: float,
    ) -> Tensor:
        """Runs T tokens, each of a request of its own. x_TD (fp32) becomes the residual stream before the last layer's
        mlp is added, which is returned.

        slots_T: where each token's KV goes. segments: the slots to which each attends, its own among them; both lie
        within the pool.
        """
        self._bind(pool)
        mlp_TD = torch.empty(x_TD.shape, dtype=self.dtype)
        k_GNK, _ = pool.layer(0)
        down = self.layers[0].down
        assert isinstance(down, NativeMatrix)
        step = DecodeStepStruct(
            x_TD.data_ptr(), mlp_TD.data_ptr(), cos_T1R.data_ptr(), sin_T1R.data_ptr(), slots_T.data_ptr(),
            ctypes.addressof(segments), ctypes.addressof(self._structs), len(self.layers), *x_TD.shape, self.heads,
            self.kv_heads, k_GNK.shape[2], down.inputs, k_GNK.stride(0), k_GNK.stride(1), self.eps, scale,
            torch.get_num_threads(),
        )  # fmt: skip
        if self.library.decode(ctypes.addressof(step), self.dtype == torch.bfloat16):
            raise MemoryError("no memory for a decode step's scratch")
        return mlp_TD

    def _bind(self, pool: LocalPool) -> None:
        if self._pool is pool:
            return
        for number, struct in enumerate(self._structs):
            struct.k, struct.v = (side.data_ptr() for side in pool.layer(number))
        self._pool = pool


def _layer_struct(layer: LayerWeights) -> DecoderLayerStruct:
    norm = layer.qk_norm_hK
    assert norm is None or norm.is_contiguous()
    return DecoderLayerStruct(
        layer.attention_norm_D.data_ptr(), _matrix_struct(layer.qkv), None if norm is None else norm.data_ptr(),
        _matrix_struct(layer.attention_out), layer.mlp_norm_D.data_ptr(), _matrix_struct(layer.gate_up),
        _matrix_struct(layer.down), None, None,
    )  # fmt: skip


def _matrix_struct(matrix: object) -> MatrixStruct:
    assert isinstance(matrix, NativeMatrix)
    bias = None if matrix.bias_O is None else matrix.bias_O.data_ptr()
    bits = matrix.bits if isinstance(matrix, NativeQuantizedLinear) else 0
    return MatrixStruct(matrix.packed.data_ptr(), bias, matrix.outputs, matrix.inputs, bits)
