"""A model that gives its length before linear scaling is served up to the scaled one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from longspan import LLM, SamplingParams
from longspan.errors import ConfigError
from tests.models.tiny import heads, hf_logits, make_model
from tests.models.tokenizers_zoo import byte_level

GIVEN, FACTOR = 64, 4.0


def test_beyond_the_length_that_is_given(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rope = {"rope_type": "linear", "rope_theta": 1e4, "factor": FACTOR}
    config = LlamaConfig(
        vocab_size=400, hidden_size=72, intermediate_size=70, num_hidden_layers=2, **heads(6, 3, 8), eos_token_id=1,
        max_position_embeddings=GIVEN, rope_parameters=rope,
    )  # fmt: skip
    model = make_model(config)
    model.save_pretrained(tmp_path)
    byte_level().save(str(tmp_path / "tokenizer.json"))
    settings = {"executor": "inproc", "dtype": "float32", "kv_tokens": 300, "threads_per_device": 1}
    with pytest.raises(ConfigError, match="max_model_len is 257, but the model was made for 256 tokens"):
        LLM(str(tmp_path), max_model_len=257, **settings)
    with LLM(str(tmp_path), **settings) as llm:
        assert llm.engine.max_model_len == GIVEN
    assert "linear RoPE" not in caplog.text
    prompt = [(7 * i * i + 3 * i) % 400 for i in range(200)]
    with LLM(str(tmp_path), max_model_len=256, **settings) as llm:
        (answer,) = llm.generate([prompt], SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True))
    assert "max_model_len is 256, beyond max_position_embeddings of 64: with linear RoPE scaling by 4" in caplog.text
    sequence = torch.tensor([*prompt, *answer.token_ids])
    expected = hf_logits(model, sequence[:-1].tolist())[len(prompt) - 1 :].argmax(-1)
    assert answer.token_ids == tuple(expected.tolist())
