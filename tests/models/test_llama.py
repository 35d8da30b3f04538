"""Our models against transformers' own, in fp32."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import Qwen2Config

from longspan.distributed.tensor_parallel import SingleDevice

from .tiny import CONFIGS, CausalAttention, heads, hf_logits, load, make_model, our_logits

TOKENS = [(7 * i * i + 3 * i) % 101 for i in range(150)]


@pytest.mark.parametrize("tp_size", [1, 2, 3])
@pytest.mark.parametrize("name", CONFIGS)
def test_logits_are_those_of_transformers(tmp_path: Path, name: str, tp_size: int) -> None:
    model = make_model(CONFIGS[name])
    model.save_pretrained(tmp_path)
    expected = hf_logits(model, TOKENS)
    assert expected.std() > 0.5, "logits this flat would hide mistakes"
    torch.testing.assert_close(our_logits(tmp_path, TOKENS, tp_size), expected, atol=1e-4, rtol=0)


def test_more_devices_than_kv_heads(tmp_path: Path) -> None:
    sizes = CONFIGS["qwen2"].to_dict() | heads(8, 2, 8)
    model = make_model(Qwen2Config.from_dict(sizes))
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(our_logits(tmp_path, TOKENS, 4), hf_logits(model, TOKENS), atol=1e-4, rtol=0)


def test_sharded_files(tmp_path: Path) -> None:
    model = make_model(CONFIGS["qwen3"])
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    torch.testing.assert_close(our_logits(tmp_path, TOKENS, 2), hf_logits(model, TOKENS), atol=1e-4, rtol=0)


def test_chunks_and_single_tokens_give_the_same_as_one_pass(tmp_path: Path) -> None:
    make_model(CONFIGS["llama3-wide-heads"]).save_pretrained(tmp_path)
    model, attention, whole = load(tmp_path), CausalAttention(), our_logits(tmp_path, TOKENS)
    for start, stop in [(0, 90), (90, 91), (91, 92), (92, 150)]:
        logits_EV = model.forward(torch.tensor(TOKENS[start:stop]), torch.arange(start, stop), attention,
                                  SingleDevice(), torch.tensor([stop - start - 1]))  # fmt: skip
        torch.testing.assert_close(logits_EV[0], whole[stop - 1], atol=1e-4, rtol=0)


def test_without_tokens_it_still_attends(tmp_path: Path) -> None:
    make_model(CONFIGS["llama"]).save_pretrained(tmp_path)
    calls = []

    def attention(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        calls.append((layer, tuple(q.shape), tuple(k.shape), tuple(v.shape)))
        return q

    none = torch.tensor([], dtype=torch.int64)
    logits_EV = load(tmp_path).forward(none, none, attention, SingleDevice(), none)
    assert calls == [(layer, (0, 6, 8), (0, 3, 8), (0, 3, 8)) for layer in range(3)]
    assert logits_EV.shape == (0, 101) and logits_EV.dtype == torch.float32


def test_a_chunk_may_emit_nothing(tmp_path: Path) -> None:
    make_model(CONFIGS["llama"]).save_pretrained(tmp_path)
    none = torch.tensor([], dtype=torch.int64)
    model, two = load(tmp_path), torch.arange(2)
    assert model.forward(two, two, CausalAttention(), SingleDevice(), none).shape == (0, 101)
