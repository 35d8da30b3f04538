"""Configs of Hugging Face folders: every spelling that is understood, and every refusal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import Qwen2Config

from longspan.errors import ModelError, UnsupportedModelError
from longspan.models.config import FAMILIES, ModelConfig, RopeConfig, load_model_config
from longspan.models.registry import MODELS, model_class

from .tiny import CONFIGS, LLAMA3_ROPE

LLAMA = {"architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 96,
         "num_attention_heads": 4, "num_hidden_layers": 2, "rms_norm_eps": 1e-5, "vocab_size": 100,
         "max_position_embeddings": 4096, "hidden_act": "silu"}  # fmt: skip
SCALING = {key: value for key, value in LLAMA3_ROPE.items() if key != "rope_theta"}


def read(folder: Path, raw: dict[str, Any], generation: dict[str, Any] | None = None) -> ModelConfig:
    (folder / "config.json").write_text(json.dumps(raw))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return load_model_config(folder)


def test_defaults_of_old_files(tmp_path: Path) -> None:
    config = read(tmp_path, LLAMA)
    assert (config.num_kv_heads, config.head_dim, config.rope) == (4, 16, RopeConfig(theta=10000.0))
    assert not config.tie_word_embeddings and config.eos_token_ids == ()
    assert config.kv_bytes_per_token(2, num_kv_heads=4, num_layers=2) == 2 * 2 * 4 * 16 * 2
    assert config.kv_bytes_per_token(2, num_kv_heads=1, num_layers=1) == 2 * 1 * 1 * 16 * 2


@pytest.mark.parametrize("spelling", [
    {"rope_parameters": LLAMA3_ROPE},
    {"rope_theta": 500000.0, "rope_scaling": SCALING},
    {"rope_theta": 500000.0, "rope_scaling": {**SCALING, "type": "llama3"}},
])  # fmt: skip
def test_rope_in_old_and_new_spelling(tmp_path: Path, spelling: dict[str, Any]) -> None:
    assert read(tmp_path, {**LLAMA, **spelling}).rope == RopeConfig(
        theta=500000.0, kind="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
        original_max_position_embeddings=64,
    )  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_what_transformers_saves(tmp_path: Path, name: str) -> None:
    theirs = CONFIGS[name]
    theirs.architectures = [type(theirs).__name__.replace("Config", "ForCausalLM")]
    theirs.save_pretrained(tmp_path)
    config = load_model_config(tmp_path)
    default_head_dim = theirs.hidden_size // theirs.num_attention_heads
    assert config.head_dim == (getattr(theirs, "head_dim", None) or default_head_dim)
    assert config.num_kv_heads == theirs.num_key_value_heads
    assert config.tie_word_embeddings == theirs.tie_word_embeddings
    assert config.rope.theta == theirs.rope_parameters["rope_theta"]
    assert config.sliding_window is None and config.eos_token_ids == (2,)


def test_generation_config_knows_the_ends_of_turns(tmp_path: Path) -> None:
    config = read(tmp_path, {**LLAMA, "eos_token_id": 2}, {"eos_token_id": [2, 32, 33]})
    assert config.eos_token_ids == (2, 32, 33)
    assert read(tmp_path, {**LLAMA, "eos_token_id": 2}, {}).eos_token_ids == (2,)


def test_a_sliding_window_limits_the_context_and_says_so(tmp_path: Path) -> None:
    mistral = {**LLAMA, "architectures": ["MistralForCausalLM"], "max_position_embeddings": 32768}
    for window, limit in ((4096, 4096), (None, 32768), (100_000, 32768)):
        config = read(tmp_path, {**mistral, "sliding_window": window})
        assert config.max_model_len == limit
        assert ("sliding window" in config.max_model_len_reason) == (window == 4096)
    assert read(tmp_path, mistral).max_model_len == 4096, "Mistral 7B v0.1 relies on transformers' default"


@pytest.mark.parametrize("settings", [
    {"use_sliding_window": False}, {"use_sliding_window": True, "max_window_layers": 2},
    {"use_sliding_window": True, "max_window_layers": 1},
])  # fmt: skip
def test_qwen_uses_its_window_only_where_told(tmp_path: Path, settings: dict[str, Any]) -> None:
    raw = {**LLAMA, "architectures": ["Qwen2ForCausalLM"], "num_key_value_heads": 2, "sliding_window": 512,
           **settings}  # fmt: skip
    theirs = Qwen2Config(**{key: value for key, value in raw.items() if key != "architectures"})
    really_used = "sliding_attention" in theirs.layer_types
    assert read(tmp_path, raw).sliding_window == (512 if really_used else None)
    theirs.architectures = raw["architectures"]
    theirs.save_pretrained(tmp_path)
    assert load_model_config(tmp_path).sliding_window == (512 if really_used else None)


@pytest.mark.parametrize(("changes", "reason"), [
    ({"architectures": ["GemmaForCausalLM"]}, "GemmaForCausalLM, which is not .* run: LlamaFor"),
    ({"architectures": None, "model_type": "bert"}, "bert model without 'architectures'"),
    ({"hidden_act": "gelu"}, "the activation 'gelu'"),
    ({"attention_bias": True}, "attention_bias"),
    ({"mlp_bias": True}, "mlp_bias"),
    ({"quantization_config": {"quant_method": "awq"}}, "weights quantised by awq"),
    ({"rope_parameters": {"rope_type": "proportional", "factor": 2.0}}, "the RoPE scaling 'proportional'"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
])  # fmt: skip
def test_what_is_not_implemented_is_refused_by_name(tmp_path: Path, changes: dict, reason: str) -> None:
    with pytest.raises(UnsupportedModelError, match=reason):
        read(tmp_path, {**LLAMA, **changes})


@pytest.mark.parametrize(("changes", "reason"), [
    ({"hidden_size": None}, "does not say 'hidden_size'"),
    ({"rope_scaling": {"type": "llama3", "factor": 8.0}}, "does not say 'low_freq_factor'"),
    ({"num_key_value_heads": 3}, "4 query heads cannot share 3 KV heads"),
    ({"head_dim": 15}, "head_dim is 15"),
])  # fmt: skip
def test_incomplete_or_inconsistent_configs(tmp_path: Path, changes: dict, reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        read(tmp_path, {**LLAMA, **changes})


def test_missing_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        load_model_config(tmp_path / "nowhere")
    with pytest.raises(ModelError, match=r"has no config\.json; pass one that has"):
        load_model_config(tmp_path)
    (tmp_path / "model.gguf").touch()
    with pytest.raises(ModelError, match=r"pass the file itself: model\.gguf"):
        load_model_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match="cannot be read as JSON"):
        load_model_config(tmp_path)


def test_every_family_has_a_model() -> None:
    assert MODELS.keys() == FAMILIES.keys()
    assert all(callable(model_class(name).load) for name in MODELS)
    with pytest.raises(UnsupportedModelError, match="BertModel is not implemented; these run: Llama"):
        model_class("BertModel")


@pytest.mark.parametrize(("rope", "longest"), [
    ({"rope_type": "linear", "factor": 4.0}, 16384), ({"type": "linear", "factor": 2.5}, 10240),
    ({"rope_type": "linear", "factor": 0.5}, 4096), ({**SCALING, "factor": 8.0}, 4096),
    ({"rope_type": "default"}, 4096),
])  # fmt: skip
def test_linear_scaling_may_go_beyond_the_length_that_is_given(tmp_path: Path, rope: dict, longest: int) -> None:
    """transformers' documentation asked for the unscaled length there; for llama3 it is the scaled one."""
    config = read(tmp_path, {**LLAMA, "rope_scaling": rope})
    assert (config.max_model_len, config.longest_model_len) == (4096, longest)
    windowed = {**LLAMA, "architectures": ["MistralForCausalLM"], "sliding_window": 6000, "rope_scaling": rope}
    assert read(tmp_path, windowed).longest_model_len == min(6000, longest)
