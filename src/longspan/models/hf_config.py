"""ModelConfig from a folder in Hugging Face layout: config.json, and generation_config.json where present."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from longspan.errors import ModelError
from longspan.models.architecture import (
    FAMILIES,
    Family,
    ModelConfig,
    TorchDType,
    unsupported_architecture,
    unsupported_feature,
)
from longspan.models.fields import Fields, read_json
from longspan.models.generation_config import FILE_NAME as GENERATION_CONFIG
from longspan.models.rope import KINDS, Plain, Reach, by_setting, kind_of, reach_of


def read(folder: Path, rope_scaling: str | None = None) -> ModelConfig:
    path = folder / "config.json"
    if not path.is_file():
        inside = ", ".join(sorted(file.name for file in folder.glob("*.gguf")))
        advice = f"pass the file itself: {inside}" if inside else "pass one that has, or a .gguf file"
        raise ModelError(f"{folder} has no config.json; {advice}")
    raw = read_json(path)
    named = raw.texts("architectures")
    architecture = named[0] if named else f"{raw.get('model_type')} model without 'architectures'"
    if architecture not in FAMILIES:
        raise unsupported_architecture(folder, architecture)
    family = FAMILIES[architecture]
    _refuse_what_is_missing_here(raw, family, folder)
    num_heads, head_dim = raw.size("num_attention_heads"), _head_dim(raw, family)
    reach = _reach(raw, folder, head_dim, rope_scaling)
    return ModelConfig(
        architecture=architecture,
        num_layers=raw.size("num_hidden_layers"),
        hidden_size=raw.size("hidden_size"),
        num_heads=num_heads,
        num_kv_heads=raw.size("num_key_value_heads", num_heads),
        head_dim=head_dim,
        intermediate_size=raw.size("intermediate_size"),
        vocab_size=raw.size("vocab_size"),
        rms_norm_eps=raw.number("rms_norm_eps"),
        rope=reach.rope,
        max_position_embeddings=reach.limit,
        stretches_to=reach.stretches_to,
        tie_word_embeddings=raw.flag("tie_word_embeddings", False),
        qkv_bias=family.qkv_bias,
        qk_norm=family.qk_norm,
        sliding_window=_sliding_window(raw, family),
        torch_dtype=_dtype(raw),
        bos_token_id=next(iter(raw.token_ids("bos_token_id")), None),
        eos_token_ids=_eos_token_ids(raw, folder),
    )


def _head_dim(raw: Fields, family: Family) -> int:
    if raw.get("head_dim") is not None or family.default_head_dim:
        return raw.size("head_dim", family.default_head_dim)
    hidden_size, num_heads = raw.size("hidden_size"), raw.size("num_attention_heads")
    if hidden_size % num_heads:
        raise raw.wrong("hidden_size", f"a multiple of the {num_heads} attention heads, or head_dim be given")
    return hidden_size // num_heads


def _refuse_what_is_missing_here(raw: Fields, family: Family, folder: Path) -> None:
    activation = raw.text("hidden_act", "silu")
    if activation != "silu":
        raise unsupported_feature(folder, f"the activation {activation!r}")
    if raw.get("quantization_config"):
        method = raw.table("quantization_config").text("quant_method", "an unnamed method")
        raise unsupported_feature(folder, f"weights quantised by {method}")
    if raw.flag("attention_bias", False) and not family.qkv_bias:
        raise unsupported_feature(folder, "attention_bias")
    if raw.flag("mlp_bias", False):
        raise unsupported_feature(folder, "mlp_bias")


def _reach(raw: Fields, folder: Path, head_dim: int, rope_scaling: str | None) -> Reach:
    """Old spelling: `rope_theta` beside `rope_scaling`. Since transformers 5: all in `rope_parameters`."""
    rope = raw.table("rope_parameters" if raw.get("rope_parameters") else "rope_scaling")
    theta = (rope if rope.get("rope_theta") is not None else raw).number("rope_theta", 10000.0)
    partial = rope if rope.get("partial_rotary_factor") is not None else raw
    if partial.number("partial_rotary_factor", 1.0) != 1.0:
        raise unsupported_feature(folder, "partial_rotary_factor")
    limit, original = raw.size("max_position_embeddings"), None
    if rope_scaling is not None:
        return by_setting(rope_scaling, Plain(theta, head_dim, limit))
    if (kind := kind_of(rope)) not in KINDS:
        raise unsupported_feature(folder, f"the RoPE scaling {kind!r} ({', '.join(KINDS)} run)")
    if raw.get("original_max_position_embeddings") is not None:
        original = raw.size("original_max_position_embeddings")
    return reach_of(rope, Plain(theta, head_dim, limit, original))


def _sliding_window(raw: Fields, family: Family) -> int | None:
    """The window, where some layer really uses one."""
    if family.default_window is None or raw.values.get("sliding_window", family.default_window) is None:
        return None
    window = raw.size("sliding_window", family.default_window)
    if not family.window_is_optional:
        return window
    if raw.get("layer_types") is not None:
        return window if "sliding_attention" in raw.texts("layer_types") else None
    if not raw.flag("use_sliding_window", False):
        return None
    first_sliding = raw.get("max_window_layers")  # 0: all layers slide
    if first_sliding != 0:
        first_sliding = raw.size("max_window_layers", 28)
    return window if first_sliding < raw.size("num_hidden_layers") else None


def _dtype(raw: Fields) -> TorchDType:
    name = str(raw.get("dtype") or raw.get("torch_dtype") or "bfloat16")
    return next((dtype for dtype in get_args(TorchDType) if dtype == name), "bfloat16")


def _eos_token_ids(raw: Fields, folder: Path) -> tuple[int, ...]:
    """generation_config.json knows more (a chat model's end of turn), so it wins."""
    path = folder / GENERATION_CONFIG
    ids = read_json(path).token_ids("eos_token_id") if path.is_file() else ()
    return ids or raw.token_ids("eos_token_id")
