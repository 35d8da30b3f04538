"""ModelConfig from a GGUF file's metadata.

llama.cpp calls Llama, Mistral and SmolLM alike "llama"; what its metadata does not say shows in the tensors
that are there.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from gguf.constants import GGMLQuantizationType

from longspan.errors import ModelError
from longspan.layers.rope_config import RopeConfig
from longspan.models.architecture import (
    FAMILIES,
    ModelConfig,
    TorchDType,
    unsupported_architecture,
    unsupported_feature,
)
from longspan.models.fields import Fields
from longspan.models.gguf_file import GGUFFile
from longspan.models.rope import Plain, Reach, by_setting, reach_of

_DTYPE_OF_FILE_TYPE: dict[int, TorchDType] = {0: "float32", 1: "float16"}
_END_TOKENS = ("eos_token_id", "eot_token_id", "eom_token_id")


def read(path: Path, rope_scaling: str | None = None) -> ModelConfig:
    file = GGUFFile(path)
    family = Fields(file.metadata, path).text("general.architecture")
    architecture = next((name for name, known in FAMILIES.items() if known.gguf == family), None)
    if architecture is None:
        raise unsupported_architecture(path, f"GGUF file of architecture {family!r}")
    raw = Fields({key.removeprefix(f"{family}."): value for key, value in file.metadata.items()}, path)
    num_heads = raw.size("attention.head_count")
    head_dim = _head_dim(raw)
    _refuse_what_is_missing_here(file, raw, head_dim)
    reach = _reach(file, raw, head_dim, rope_scaling)
    ends = (raw.token_ids(f"tokenizer.ggml.{name}") for name in _END_TOKENS)
    return ModelConfig(
        architecture=architecture,
        num_layers=raw.size("block_count"),
        hidden_size=raw.size("embedding_length"),
        num_heads=num_heads,
        num_kv_heads=raw.size("attention.head_count_kv", num_heads),
        head_dim=head_dim,
        intermediate_size=raw.size("feed_forward_length"),
        vocab_size=_vocab_size(file),
        rms_norm_eps=raw.number("attention.layer_norm_rms_epsilon"),
        rope=reach.rope,
        max_position_embeddings=reach.limit,
        stretches_to=reach.stretches_to,
        tie_word_embeddings="output.weight" not in file.tensors,
        qkv_bias="blk.0.attn_q.bias" in file.tensors,
        qk_norm="blk.0.attn_q_norm.weight" in file.tensors,
        sliding_window=raw.size("attention.sliding_window") if raw.get("attention.sliding_window") else None,
        torch_dtype=_dtype(raw),
        bos_token_id=next(iter(raw.token_ids("tokenizer.ggml.bos_token_id")), None),
        eos_token_ids=tuple(dict.fromkeys(token_id for ids in ends for token_id in ids)),
    )


def _head_dim(raw: Fields) -> int:
    if raw.get("attention.key_length"):
        return raw.size("attention.key_length")
    hidden_size, num_heads = raw.size("embedding_length"), raw.size("attention.head_count")
    if hidden_size % num_heads:
        raise raw.wrong("embedding_length", f"a multiple of the {num_heads} attention heads")
    return hidden_size // num_heads


def _dtype(raw: Fields) -> TorchDType:
    file_type = raw.get("general.file_type")
    return _DTYPE_OF_FILE_TYPE.get(file_type if isinstance(file_type, int) else -1, "bfloat16")


def _refuse_what_is_missing_here(file: GGUFFile, raw: Fields, head_dim: int) -> None:
    if raw.get("split.count") and (parts := raw.size("split.count")) > 1:
        raise ModelError(f"{file.path} is one of {parts} parts; merge them first (llama-gguf-split --merge)")
    if raw.get("expert_count"):
        raise unsupported_feature(file.path, f"a mixture of {raw.size('expert_count')} experts")
    if raw.size("attention.value_length", head_dim) != head_dim:
        raise unsupported_feature(file.path, "values of another size than keys")
    if raw.size("rope.dimension_count", head_dim) != head_dim:
        raise unsupported_feature(file.path, "rotary embedding of a part of each head")
    if "blk.0.attn_output.bias" in file.tensors or "blk.0.ffn_down.bias" in file.tensors:
        raise unsupported_feature(file.path, "biases beyond those of query, key and value")


def _reach(file: GGUFFile, raw: Fields, head_dim: int, rope_scaling: str | None) -> Reach:
    theta, limit = raw.number("rope.freq_base", 10000.0), raw.size("context_length")
    if rope_scaling is not None:
        return by_setting(rope_scaling, Plain(theta, head_dim, limit))
    kind = raw.text("rope.scaling.type", "none" if raw.get("rope.scale_linear") is None else "linear")
    if kind not in ("none", "linear", "yarn"):
        raise unsupported_feature(file.path, f"the RoPE scaling {kind!r} (none, linear, yarn and llama3 run)")
    if kind == "yarn":
        return _yarn(raw, Plain(theta, head_dim, limit))
    factor = 1.0
    if kind == "linear":
        factor = raw.number("rope.scaling.factor", raw.number("rope.scale_linear", 1.0))
    if "rope_freqs.weight" in file.tensors:  # llama3 scaling, worked out by the converter
        scaled = tuple(factor * divisor for divisor in _divisors(file, head_dim))
        return Reach(RopeConfig(theta=theta, kind="per_frequency", divisors=scaled), limit, 0)
    if factor != 1.0:
        return reach_of(Fields({"rope_type": "linear", "factor": factor}, file.path), Plain(theta, head_dim, limit))
    return Reach(RopeConfig(theta=theta), limit, 0)


def _yarn(raw: Fields, plain: Plain) -> Reach:
    """llama.cpp multiplies what the paper's factor of attention comes to with one of its own, 1 by default."""
    names = {"factor": "factor", "original_max_position_embeddings": "original_context_length",
             "beta_fast": "yarn_beta_fast", "beta_slow": "yarn_beta_slow"}  # fmt: skip
    values = {name: raw.get(f"rope.scaling.{theirs}") for name, theirs in names.items()}
    reach = reach_of(Fields({"rope_type": "yarn", **values}, raw.path), plain)
    own = raw.number("rope.scaling.yarn_attn_factor", raw.number("rope.scaling.attn_factor", 1.0))
    return replace(reach, rope=replace(reach.rope, attention_factor=own * reach.rope.attention_factor))


def _divisors(file: GGUFFile, head_dim: int) -> list[float]:
    stored = file.tensors["rope_freqs.weight"]
    if stored.kind != GGMLQuantizationType.F32 or stored.shape != (head_dim // 2,):
        raise ModelError(
            f"{file.path}: rope_freqs.weight has shape {stored.shape} in {stored.kind.name}, but the heads need "
            f"{head_dim // 2} values in F32"
        )
    divisors = file.blocks(stored).view(np.float32).ravel()
    if not (np.isfinite(divisors) & (divisors > 0)).all():
        raise ModelError(f"{file.path}: rope_freqs.weight holds values that are not finite and above 0")
    return [float(divisor) for divisor in divisors]


def _vocab_size(file: GGUFFile) -> int:
    if "token_embd.weight" not in file.tensors:
        raise ModelError(f"{file.path} has no tensor token_embd.weight; is it a vocabulary, an adapter?")
    shape = file.tensors["token_embd.weight"].shape
    if len(shape) != 2:
        raise ModelError(f"{file.path}: token_embd.weight has shape {shape}, but must be a matrix")
    return shape[0]
