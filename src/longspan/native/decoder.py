"""All decoder layers of a decode step in one call (csrc/decoder.h).

A step of one token is a few hundred small kernels; calling each from Python takes about as long as they do. What other
instances ask, and what this one asks of them, goes through shared memory in the same call.

Shape suffixes: T tokens, D hidden, R half of head_dim, G KV heads, N slots, K head_dim.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from longspan.native.elementwise import covers as elementwise_covers
from longspan.native.library import (
    AnswersStruct,
    AsksStruct,
    DecoderLayerStruct,
    DecodeStepStruct,
    Library,
    MatrixStruct,
    SegmentStruct,
    best_library,
)
from longspan.native.linear import NativeLinear
from longspan.native.mail import check_exchanged
from longspan.native.quantized_linear import NativeQuantizedLinear

NativeMatrix = NativeLinear | NativeQuantizedLinear
MOST_HEAD_DIM = 256  # csrc/kv_rows.h
_NO_MEMORY = 1  # csrc/library.cpp


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


@dataclass(frozen=True, slots=True)
class LoneTokens:
    """One instance's part in a decode step: a token of each of T requests, or none where it only answers.

    slots_T: where each token's KV goes. segments: the local slots to which each attends, its own among them. mail: the
    handle of a `NativeMail`, or None where no instance is asked. All slots lie within the pool. keep: what the pointers
    in the structures point to.
    """

    pool: LocalPool
    slots_T: Tensor
    segments: ctypes.Array[SegmentStruct] | None
    scale: float
    mail: int | None
    asks: ctypes.Array[AsksStruct]
    answers: ctypes.Array[AnswersStruct]
    keep: tuple[object, ...] = ()


class NativeDecoder:
    """Decoder layers of one device, whose weights our own kernels read. See `of`."""

    def __init__(self, library: Library, layers: Sequence[LayerWeights], heads: int, kv_heads: int, eps: float) -> None:
        self.library = library
        self.layers = layers
        self.heads, self.kv_heads, self.eps = heads, kv_heads, eps
        self.dtype = layers[0].attention_norm_D.dtype
        # Instances that are threads share a model, not a pool.
        self._bound: WeakKeyDictionary[LocalPool, ctypes.Array[DecoderLayerStruct]] = WeakKeyDictionary()

    @classmethod
    def of(
        cls, layers: Sequence[LayerWeights], heads: int, kv_heads: int, head_dim: int, intermediate: int, eps: float
    ) -> NativeDecoder | None:
        """Return a decoder; None where some of it needs other kernels: there layers run one after the other."""
        norm_D = layers[0].attention_norm_D
        library = best_library() if norm_D.device.type == "cpu" else None
        matrices = [m for layer in layers for m in (layer.qkv, layer.attention_out, layer.gate_up, layer.down)]
        if library is None or not all(isinstance(matrix, NativeMatrix) for matrix in matrices):
            return None
        if not elementwise_covers(norm_D.dtype, len(norm_D), head_dim, intermediate) or head_dim > MOST_HEAD_DIM:
            return None
        return cls(library, layers, heads, kv_heads, eps)

    def __call__(self, x_TD: Tensor, cos_T1R: Tensor, sin_T1R: Tensor, part: LoneTokens) -> Tensor:
        """Turn x_TD (fp32) into the residual stream before the last layer's mlp is added; that mlp is returned.

        Raises WorkVoidError, MemoryError.
        """
        layers = self._layers_with(part.pool)
        mlp_TD = torch.empty(x_TD.shape, dtype=self.dtype)
        k_GNK, _ = part.pool.layer(0)
        down = self.layers[0].down
        assert isinstance(down, NativeMatrix)
        step = DecodeStepStruct(
            x_TD.data_ptr(), mlp_TD.data_ptr(), cos_T1R.data_ptr(), sin_T1R.data_ptr(), part.slots_T.data_ptr(),
            ctypes.addressof(part.segments) if part.segments else None, ctypes.addressof(layers), part.mail,
            ctypes.addressof(part.asks), ctypes.addressof(part.answers), len(part.asks), len(part.answers),
            len(self.layers), *x_TD.shape, self.heads, self.kv_heads, k_GNK.shape[2], down.inputs, k_GNK.stride(0),
            k_GNK.stride(1), self.eps, part.scale, torch.get_num_threads(),
        )  # fmt: skip
        status = self.library.decode(ctypes.addressof(step), self.dtype == torch.bfloat16)
        if status == _NO_MEMORY:
            raise MemoryError("no memory for a decode step's scratch")
        check_exchanged(status)
        return mlp_TD

    def _layers_with(self, pool: LocalPool) -> ctypes.Array[DecoderLayerStruct]:
        if pool not in self._bound:
            structs = (_layer_struct(layer, *pool.layer(number)) for number, layer in enumerate(self.layers))
            self._bound[pool] = (DecoderLayerStruct * len(self.layers))(*structs)
        return self._bound[pool]


def _layer_struct(layer: LayerWeights, k_GNK: Tensor, v_GNK: Tensor) -> DecoderLayerStruct:
    norm = layer.qk_norm_hK
    assert norm is None or norm.is_contiguous()
    return DecoderLayerStruct(
        layer.attention_norm_D.data_ptr(), _matrix_struct(layer.qkv), None if norm is None else norm.data_ptr(),
        _matrix_struct(layer.attention_out), layer.mlp_norm_D.data_ptr(), _matrix_struct(layer.gate_up),
        _matrix_struct(layer.down), k_GNK.data_ptr(), v_GNK.data_ptr(),
    )  # fmt: skip


def _matrix_struct(matrix: object) -> MatrixStruct:
    assert isinstance(matrix, NativeMatrix)
    bias = None if matrix.bias_O is None else matrix.bias_O.data_ptr()
    bits = matrix.bits if isinstance(matrix, NativeQuantizedLinear) else 0
    return MatrixStruct(matrix.packed.data_ptr(), bias, matrix.outputs, matrix.inputs, bits)
