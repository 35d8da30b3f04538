"""ModelConfig from a folder in Hugging Face layout: config.json, and generation_config.json where present."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

from longspan.errors import ModelError
from longspan.layers.rope_config import RopeConfig
from longspan.models.architecture import (
    FAMILIES,
    Family,
    ModelConfig,
    TorchDType,
    required,
    unsupported_architecture,
    unsupported_feature,
)


def read(folder: Path) -> ModelConfig:
    path = folder / "config.json"
    if not path.is_file():
        inside = ", ".join(sorted(file.name for file in folder.glob("*.gguf")))
        advice = f"pass the file itself: {inside}" if inside else "pass one that has, or a .gguf file"
        raise ModelError(f"{folder} has no config.json; {advice}")
    raw = _read_json(path)
    architecture = (raw.get("architectures") or [f"{raw.get('model_type')} model without 'architectures'"])[0]
    if architecture not in FAMILIES:
        raise unsupported_architecture(folder, architecture)
    family = FAMILIES[architecture]
    _refuse_what_is_missing_here(raw, family, folder)
    hidden_size, num_heads = required(raw, "hidden_size", path), required(raw, "num_attention_heads", path)
    return ModelConfig(
        architecture=architecture,
        num_layers=required(raw, "num_hidden_layers", path),
        hidden_size=hidden_size,
        num_heads=num_heads,
        num_kv_heads=raw.get("num_key_value_heads") or num_heads,
        head_dim=raw.get("head_dim") or family.default_head_dim or hidden_size // num_heads,
        intermediate_size=required(raw, "intermediate_size", path),
        vocab_size=required(raw, "vocab_size", path),
        rms_norm_eps=required(raw, "rms_norm_eps", path),
        rope=_rope(raw, folder),
        max_position_embeddings=required(raw, "max_position_embeddings", path),
        tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
        qkv_bias=family.qkv_bias,
        qk_norm=family.qk_norm,
        sliding_window=_sliding_window(raw, family),
        torch_dtype=_dtype(raw),
        bos_token_id=raw.get("bos_token_id"),
        eos_token_ids=_eos_token_ids(raw, folder),
    )


def _refuse_what_is_missing_here(raw: dict[str, Any], family: Family, folder: Path) -> None:
    activation = raw.get("hidden_act", "silu")
    if activation != "silu":
        raise unsupported_feature(folder, f"the activation {activation!r}")
    if raw.get("quantization_config"):
        method = raw["quantization_config"].get("quant_method", "an unnamed method")
        raise unsupported_feature(folder, f"weights quantised by {method}")
    if raw.get("attention_bias") and not family.qkv_bias:
        raise unsupported_feature(folder, "attention_bias")
    if raw.get("mlp_bias"):
        raise unsupported_feature(folder, "mlp_bias")


def _rope(raw: dict[str, Any], folder: Path) -> RopeConfig:
    """Old spelling: `rope_theta` beside `rope_scaling`. Since transformers 5: all in `rope_parameters`."""
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    theta = float(rope.get("rope_theta") or raw.get("rope_theta") or 10000.0)
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if rope.get("partial_rotary_factor", raw.get("partial_rotary_factor", 1.0)) != 1.0:
        raise unsupported_feature(folder, "partial_rotary_factor")
    if kind == "default":
        return RopeConfig(theta=theta)
    if kind not in ("linear", "llama3"):
        raise unsupported_feature(folder, f"the RoPE scaling {kind!r} (default, linear and llama3 run)")
    factor = float(required(rope, "factor", folder / "config.json"))
    if kind == "linear":
        return RopeConfig(theta=theta, kind="linear", factor=factor)
    low, high, length = (
        required(rope, key, folder / "config.json")
        for key in ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    )
    return RopeConfig(
        theta=theta,
        kind="llama3",
        factor=factor,
        low_freq_factor=float(low),
        high_freq_factor=float(high),
        original_max_position_embeddings=int(length),
    )


def _sliding_window(raw: dict[str, Any], family: Family) -> int | None:
    """The window, where some layer really uses one."""
    window: int | None = raw.get("sliding_window", family.default_window)
    if family.default_window is None or window is None:
        return None
    if not family.window_is_optional:
        return window
    layer_types = raw.get("layer_types")
    if layer_types is not None:
        return window if "sliding_attention" in layer_types else None
    sliding = raw.get("use_sliding_window") and raw.get("max_window_layers", 28) < raw["num_hidden_layers"]
    return window if sliding else None


def _dtype(raw: dict[str, Any]) -> TorchDType:
    name = str(raw.get("dtype") or raw.get("torch_dtype") or "bfloat16")
    return next((dtype for dtype in get_args(TorchDType) if dtype == name), "bfloat16")


def _eos_token_ids(raw: dict[str, Any], folder: Path) -> tuple[int, ...]:
    """generation_config.json knows more (a chat model's end of turn), so it wins."""
    path = folder / "generation_config.json"
    eos = _read_json(path).get("eos_token_id") if path.is_file() else None
    if eos is None:
        eos = raw.get("eos_token_id")
    if eos is None:
        return ()
    return tuple(eos) if isinstance(eos, list) else (int(eos),)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} holds no JSON object")
    return value
