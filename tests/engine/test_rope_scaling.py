"""A model goes beyond its length by a RoPE scaling that is set, with the tokens of transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig

from longspan import LLM, SamplingParams
from longspan.errors import ConfigError
from tests.models.tiny import ORIGINAL, SIZES, fresh_rope, heads, make_model, scaled, write_tiny_engine_model

SETTINGS = {"executor": "inproc", "dtype": "float32", "kv_tokens": 300, "threads_per_device": 1}
PLAIN = LlamaConfig(**SIZES | heads(6, 3, 8) | {"max_position_embeddings": ORIGINAL},
                    rope_parameters={"rope_type": "default", "rope_theta": 100.0})  # fmt: skip
GREEDY = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
PROMPTS = [[(7 * i * i + 3 * i) % 101 for i in range(length)] for length in (150, ORIGINAL - 4, 5)]


def scaling_of(kind: str) -> dict[str, Any]:
    """As the one who serves gives it: theta is the model's."""
    values = dict(scaled(PLAIN, kind).rope_parameters)
    del values["rope_theta"]
    if kind == "longrope":
        values["factor"] = 16.0
    return {name: value for name, value in values.items() if value is not None}


@pytest.mark.parametrize("policy", ["elastic_fcfs", "sarathi:chunk_size=7", "vllm"])
@pytest.mark.parametrize("kind", ["yarn", "dynamic", "longrope"])
def test_beyond_the_length_by_a_setting(tmp_path: Path, kind: str, policy: str) -> None:
    write_tiny_engine_model(tmp_path, PLAIN)
    theirs = make_model(scaled(PLAIN, kind))  # the same weights
    assert theirs.generation_config is not None
    theirs.generation_config.eos_token_id = None
    with LLM(str(tmp_path), rope_scaling=scaling_of(kind), policy=policy, **SETTINGS) as llm:
        assert llm.engine.max_model_len == 16 * ORIGINAL
        answers = llm.generate(PROMPTS, GREEDY)
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        fresh_rope(theirs)
        ids = torch.tensor([prompt])
        expected = theirs.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, pad_token_id=0
        )
        assert answer.token_ids == tuple(expected[0, len(prompt) :].tolist())


def test_what_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_tiny_engine_model(tmp_path, PLAIN)
    with pytest.raises(ConfigError, match="max_model_len is 99, but the model was made for 24 tokens; --rope-"):
        LLM(str(tmp_path), max_model_len=99, **SETTINGS)
    with pytest.raises(ConfigError, match="max_model_len is 999, but the model was made for 384 tokens"):
        LLM(str(tmp_path), max_model_len=999, rope_scaling=scaling_of("yarn"), **SETTINGS)
    with pytest.raises(ConfigError, match="rope_scaling: yarn has no 'facto'"):
        LLM(str(tmp_path), rope_scaling='{"rope_type": "yarn", "facto": 4}', **SETTINGS)
    plain = dict(SETTINGS, instances=1)
    with LLM(str(tmp_path), max_model_len=20, **plain) as llm:
        unscaled = llm.engine.fingerprint
    with caplog.at_level("INFO"), LLM(str(tmp_path), rope_scaling=json.dumps(scaling_of("yarn")), **plain) as llm:
        assert llm.engine.fingerprint != unscaled
    assert "yarn RoPE scaling by 16: up to 384 tokens" in caplog.text


def test_dynamic_in_a_config_is_served_to_its_length_or_as_far_as_is_set(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_tiny_engine_model(tmp_path, scaled(PLAIN, "dynamic"))
    with LLM(str(tmp_path), **SETTINGS) as llm:
        assert llm.engine.max_model_len == ORIGINAL
    with LLM(str(tmp_path), max_model_len=16 * ORIGINAL, **SETTINGS) as llm:
        assert llm.engine.max_model_len == 16 * ORIGINAL
    assert "with dynamic RoPE scaling by 16 some models give that number before scaling" in caplog.text
