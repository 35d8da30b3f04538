"""Weights from a GGUF file, under their Hugging Face names: only the share asked for, dequantised or as stored."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import dequantize
from numpy.typing import NDArray
from torch import Tensor

from longspan.errors import ModelError, UnsupportedModelError
from longspan.layers.quantized_linear import QuantizedMatrix
from longspan.models.gguf_file import GGUFFile, GGUFTensor
from longspan.models.gguf_quants import GROUP, is_kept, take_apart

_TOP = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
_IN_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(hf_name: str) -> str:
    """Return llama.cpp's name of a tensor: model.layers.3.mlp.up_proj.weight is blk.3.ffn_up.weight."""
    module, _, kind = hf_name.rpartition(".")
    if match := re.fullmatch(r"model\.layers\.(\d+)\.(.+)", module):
        return f"blk.{match[1]}.{_IN_LAYER[match[2]]}.{kind}"
    return f"{_TOP[module]}.{kind}"


class GGUFWeights:
    """Rows are cut before dequantising; columns too, rounded out to whole quantisation blocks."""

    def __init__(self, path: Path, head_dim: int) -> None:
        self.file = GGUFFile(path)
        self.head_dim = head_dim
        self.rotary_pairs_are_adjacent = self.file.metadata.get("general.architecture") == "llama"

    def shape(self, name: str) -> tuple[int, ...]:
        return self._find(name).shape

    def read(self, name: str, rows: slice | None = None, columns: slice | None = None) -> Tensor:
        stored = self._find(name)
        if len(stored.shape) == 1:
            values = self._dequantise(stored, slice(None), rows)[0]
        else:
            values = self._dequantise(stored, rows or slice(None), columns)
        return torch.from_numpy(np.array(self._in_our_order(name, values), dtype=np.float32))

    def read_quantized(
        self, name: str, rows: slice | None = None, columns: slice | None = None
    ) -> QuantizedMatrix | None:
        """Return the named matrix, or a part of it, as it is stored; None where no kernel reads it so."""
        stored = self._find(name)
        start, stop, _ = (columns or slice(None)).indices(stored.shape[-1])
        if not is_kept(stored.kind) or start % GROUP or stop % GROUP:
            return None
        block_bytes = GGML_QUANT_SIZES[stored.kind][1]
        kept = self.file.blocks(stored)[rows or slice(None), start // GROUP * block_bytes : stop // GROUP * block_bytes]
        parts = take_apart(kept, stored.kind)
        quants_OI, scales_ON, minima_ON = (
            None if part is None else torch.from_numpy(np.array(self._in_our_order(name, part)))
            for part in (parts.quants, parts.scales, parts.minima)
        )
        assert quants_OI is not None and scales_ON is not None
        return QuantizedMatrix(quants_OI, scales_ON, minima_ON)

    def _find(self, name: str) -> GGUFTensor:
        stored = self.file.tensors.get(gguf_name(name))
        if stored is None:
            raise ModelError(f"{self.file.path}: tensor {name} (there: {gguf_name(name)}) is missing")
        if len(stored.shape) > 2:
            raise ModelError(f"{self.file.path}: tensor {stored.name} has shape {stored.shape}, but must be a matrix")
        return stored

    def _dequantise(self, stored: GGUFTensor, rows: slice, columns: slice | None) -> NDArray[np.float32]:
        values_per_block, block_bytes = GGML_QUANT_SIZES[stored.kind]
        start, stop, _ = (columns or slice(None)).indices(stored.shape[-1])
        first, last = start // values_per_block, -(-stop // values_per_block)
        blocks = self.file.blocks(stored)[rows, first * block_bytes : last * block_bytes]
        try:
            values = dequantize(np.ascontiguousarray(blocks), stored.kind)
        except NotImplementedError as error:
            raise UnsupportedModelError(
                f"{self.file.path}: {stored.name} is stored as {stored.kind.name}, "
                "which the gguf package cannot dequantise"
            ) from error
        return values[:, start - first * values_per_block : stop - first * values_per_block]

    def _in_our_order(self, name: str, values: NDArray[Any]) -> NDArray[Any]:
        """llama.cpp rotates neighbours (0, 1), (2, 3) ... of a head; we rotate i with i + head_dim/2, as HF
        does. Its converter reordered the rows of each head of Q and K to suit: this puts them back."""
        if not self.rotary_pairs_are_adjacent or not re.search(r"\.[qk]_proj\.", name):
            return values
        if values.shape[0] % self.head_dim:
            raise ModelError(f"{self.file.path}: {name} has {values.shape[0]} rows, not whole heads of {self.head_dim}")
        pairs = values.reshape(-1, self.head_dim // 2, 2, *values.shape[1:])
        return pairs.swapaxes(1, 2).reshape(values.shape)
