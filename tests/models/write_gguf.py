"""Writes a transformers model as GGUF, the way llama.cpp's converter does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter, quantize
from transformers import PreTrainedModel

from longspan.models.gguf_weights import gguf_name

_KINDS = {str: GGUFValueType.STRING, int: GGUFValueType.UINT32, float: GGUFValueType.FLOAT32}


def write_gguf(model: PreTrainedModel, path: Path, *, quantised: GGMLQuantizationType | None = None,
               more: dict[str, Any] | None = None) -> Path:  # fmt: skip
    """`quantised`: how matrices are stored, where their rows divide into blocks. `more`: further metadata."""
    config = model.config
    family = {"mistral": "llama"}.get(config.model_type, config.model_type)
    writer = GGUFWriter(path, family)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_eos_token_id(2)
    writer.add_eot_token_id(7)
    writer.add_token_list([f"token {i}" for i in range(config.vocab_size)])
    writer.add_array("test.numbers", [1, 2, 3])
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    if config.rope_parameters["rope_type"] == "linear":
        writer.add_string(f"{family}.rope.scaling.type", "linear")
        writer.add_rope_scaling_factor(config.rope_parameters["factor"])
    if config.rope_parameters["rope_type"] == "yarn":
        writer.add_string(f"{family}.rope.scaling.type", "yarn")
        writer.add_rope_scaling_factor(config.rope_parameters["factor"])
        writer.add_rope_scaling_orig_ctx_len(config.rope_parameters["original_max_position_embeddings"])
        writer.add_rope_scaling_yarn_beta_fast(config.rope_parameters["beta_fast"])
    if config.rope_parameters["rope_type"] == "llama3":
        writer.add_tensor("rope_freqs.weight", _llama3_divisors(config.rope_parameters, head_dim))
    for key, value in (more or {}).items():
        writer.add_key_value(key, value, _KINDS[type(value)])
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values = tensor.numpy()
        if family == "llama" and ("q_proj" in name or "k_proj" in name):
            values = _pairs_adjacent(values, head_dim)
        if quantised is not None and values.ndim == 2:
            writer.add_tensor(gguf_name(name), quantize(values, quantised), raw_dtype=quantised)
        else:
            writer.add_tensor(gguf_name(name), values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _pairs_adjacent(values: np.ndarray, head_dim: int) -> np.ndarray:
    """`permute` of convert_hf_to_gguf.py."""
    halves = values.reshape(-1, 2, head_dim // 2, *values.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(values.shape))


def _llama3_divisors(rope: dict[str, Any], head_dim: int) -> np.ndarray:
    """`generate_extra_tensors` of convert_hf_to_gguf.py's LlamaModel."""
    frequencies = 1.0 / (rope["rope_theta"] ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim))
    factor, low, high = rope["factor"], rope["low_freq_factor"], rope["high_freq_factor"]
    context, divisors = rope["original_max_position_embeddings"], []
    for frequency in frequencies:
        wavelength = 2 * np.pi / frequency
        if wavelength < context / high:
            divisors.append(1.0)
        elif wavelength > context / low:
            divisors.append(factor)
        else:
            smooth = (context / wavelength - low) / (high - low)
            divisors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(divisors, dtype=np.float32)
