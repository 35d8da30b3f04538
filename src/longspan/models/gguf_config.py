"""ModelConfig from a GGUF file's metadata.

llama.cpp calls Llama, Mistral and SmolLM alike "llama"; what its metadata does not say shows in the tensors
that are there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from longspan.errors import ModelError
from longspan.layers.rope_config import RopeConfig
from longspan.models.architecture import (
    FAMILIES,
    ModelConfig,
    TorchDType,
    required,
    unsupported_architecture,
    unsupported_feature,
)
from longspan.models.gguf_file import GGUFFile

_DTYPE_OF_FILE_TYPE: dict[int, TorchDType] = {0: "float32", 1: "float16"}
_END_TOKENS = ("eos_token_id", "eot_token_id", "eom_token_id")


def read(path: Path) -> ModelConfig:
    file = GGUFFile(path)
    family = str(required(file.metadata, "general.architecture", path))
    architecture = next((name for name, known in FAMILIES.items() if known.gguf == family), None)
    if architecture is None:
        raise unsupported_architecture(path, f"GGUF file of architecture {family!r}")
    raw: dict[str, Any] = {key.removeprefix(f"{family}."): value for key, value in file.metadata.items()}
    hidden_size = required(raw, "embedding_length", path)
    num_heads = required(raw, "attention.head_count", path)
    head_dim = raw.get("attention.key_length") or hidden_size // num_heads
    _refuse_what_is_missing_here(file, raw, head_dim)
    end_tokens = [raw[f"tokenizer.ggml.{name}"] for name in _END_TOKENS if f"tokenizer.ggml.{name}" in raw]
    return ModelConfig(
        architecture=architecture,
        num_layers=required(raw, "block_count", path),
        hidden_size=hidden_size,
        num_heads=num_heads,
        num_kv_heads=raw.get("attention.head_count_kv") or num_heads,
        head_dim=head_dim,
        intermediate_size=required(raw, "feed_forward_length", path),
        vocab_size=_vocab_size(file),
        rms_norm_eps=required(raw, "attention.layer_norm_rms_epsilon", path),
        rope=_rope(file, raw, head_dim),
        max_position_embeddings=required(raw, "context_length", path),
        tie_word_embeddings="output.weight" not in file.tensors,
        qkv_bias="blk.0.attn_q.bias" in file.tensors,
        qk_norm="blk.0.attn_q_norm.weight" in file.tensors,
        sliding_window=raw.get("attention.sliding_window") or None,
        torch_dtype=_DTYPE_OF_FILE_TYPE.get(raw.get("general.file_type", -1), "bfloat16"),
        bos_token_id=raw.get("tokenizer.ggml.bos_token_id"),
        eos_token_ids=tuple(dict.fromkeys(end_tokens)),
    )


def _refuse_what_is_missing_here(file: GGUFFile, raw: dict[str, Any], head_dim: int) -> None:
    if raw.get("split.count", 1) > 1:
        raise ModelError(
            f"{file.path} is one of {raw['split.count']} parts; merge them first (llama-gguf-split --merge)"
        )
    if raw.get("expert_count", 0) > 0:
        raise unsupported_feature(file.path, f"a mixture of {raw['expert_count']} experts")
    if raw.get("attention.value_length", head_dim) != head_dim:
        raise unsupported_feature(file.path, "values of another size than keys")
    if raw.get("rope.dimension_count", head_dim) != head_dim:
        raise unsupported_feature(file.path, "rotary embedding of a part of each head")
    if "blk.0.attn_output.bias" in file.tensors or "blk.0.ffn_down.bias" in file.tensors:
        raise unsupported_feature(file.path, "biases beyond those of query, key and value")


def _rope(file: GGUFFile, raw: dict[str, Any], head_dim: int) -> RopeConfig:
    theta = float(raw.get("rope.freq_base", 10000.0))
    kind = raw.get("rope.scaling.type", "linear" if "rope.scale_linear" in raw else "none")
    if kind not in ("none", "linear"):
        raise unsupported_feature(file.path, f"the RoPE scaling {kind!r} (none, linear and llama3 run)")
    factor = 1.0
    if kind == "linear":
        factor = float(raw.get("rope.scaling.factor", raw.get("rope.scale_linear", 1.0)))
    if "rope_freqs.weight" in file.tensors:  # llama3 scaling, worked out by the converter
        divisors = file.blocks(file.tensors["rope_freqs.weight"]).view(np.float32).ravel()
        if len(divisors) != head_dim // 2:
            raise ModelError(
                f"{file.path}: rope_freqs.weight has {len(divisors)} values,"
                f" but the heads need {head_dim // 2}"
            )
        scaled = tuple(factor * float(divisor) for divisor in divisors)
        return RopeConfig(theta=theta, kind="per_frequency", divisors=scaled)
    if factor != 1.0:
        return RopeConfig(theta=theta, kind="linear", factor=factor)
    return RopeConfig(theta=theta)


def _vocab_size(file: GGUFFile) -> int:
    if "token_embd.weight" not in file.tensors:
        raise ModelError(f"{file.path} has no tensor token_embd.weight; is it a vocabulary, an adapter?")
    return file.tensors["token_embd.weight"].shape[0]
