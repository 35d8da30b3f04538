"""GGUF files: the header against gguf's own reader, the models against transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFReader
from transformers import LlamaConfig, PreTrainedModel

from longspan.engine.tokenizer import Tokenizer
from longspan.errors import ModelError, UnsupportedModelError
from longspan.layers.quantized_linear import PlainQuantizedLinear
from longspan.models import gguf_weights
from longspan.models.catalog import ResolvedModel
from longspan.models.config import load_model_config
from longspan.models.gguf_file import ArrayLength, GGUFFile
from longspan.models.gguf_weights import GGUFWeights
from longspan.native.quantized_linear import NativeQuantizedLinear

from .tiny import CONFIGS, SIZES, heads, hf_logits, load, make_model, our_logits
from .write_gguf import write_gguf

TOKENS = [(7 * i * i + 3 * i) % 101 for i in range(150)]


def test_the_default_model_is_what_transformers_makes_of_it(
    model: ResolvedModel, hf_model: PreTrainedModel
) -> None:
    tokens = Tokenizer.load(model).encode("Call me Ishmael. Some years ago - never mind how long precisely -")
    expected = hf_logits(hf_model, tokens)
    torch.testing.assert_close(our_logits(model.path, tokens), expected, atol=1e-3, rtol=0)
    torch.testing.assert_close(our_logits(model.path, tokens, 2), expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_family_from_gguf(tmp_path: Path, name: str) -> None:
    model = make_model(CONFIGS[name])
    path = write_gguf(model, tmp_path / "model.gguf")
    expected = hf_logits(model, TOKENS)
    for tp_size in (1, 2):
        torch.testing.assert_close(our_logits(path, TOKENS, tp_size), expected, atol=1e-4, rtol=0)


def test_config_from_gguf(tmp_path: Path) -> None:
    config = load_model_config(write_gguf(make_model(CONFIGS["qwen2"]), tmp_path / "model.gguf"))
    assert config.architecture == "Qwen2ForCausalLM"
    assert config.qkv_bias and config.tie_word_embeddings and not config.qk_norm
    assert (config.vocab_size, config.head_dim, config.max_model_len) == (101, 8, 512)
    assert config.eos_token_ids == (2, 7)


def test_header_agrees_with_gguf_reader(tmp_path: Path, model: ResolvedModel) -> None:
    tiny = write_gguf(make_model(CONFIGS["qwen3"]), tmp_path / "tiny.gguf", more={"test.text": "grüße"})
    for path in (tiny, model.path):
        ours, theirs = GGUFFile(path), GGUFReader(path)
        for key, field in theirs.fields.items():
            if key.startswith("GGUF."):
                continue
            is_array = isinstance(ours.metadata[key], ArrayLength)
            assert ours.metadata[key] == (ArrayLength(len(field.data)) if is_array else field.contents())
        assert list(ours.tensors) == [tensor.name for tensor in theirs.tensors]
        for tensor in theirs.tensors:
            mine = ours.tensors[tensor.name]
            assert (mine.kind, mine.offset) == (tensor.tensor_type, tensor.data_offset)
            assert mine.shape == tuple(reversed(tensor.shape.tolist()))
            assert np.array_equal(ours.blocks(mine).ravel(), tensor.data.view(np.uint8).ravel())


QUANTISED = LlamaConfig(**{**SIZES, "hidden_size": 256, "intermediate_size": 384}, **heads(8, 4, 32))


@pytest.mark.parametrize("kind", [Kind.Q8_0, Kind.Q4_1, Kind.F16, Kind.BF16])
def test_any_part_of_a_quantised_matrix(tmp_path: Path, kind: Kind) -> None:
    path = write_gguf(make_model(QUANTISED), tmp_path / "model.gguf", quantised=kind)
    source = GGUFWeights(path, head_dim=32)
    for name in ("model.layers.1.mlp.down_proj.weight", "model.layers.1.self_attn.q_proj.weight"):
        whole = source.read(name)
        everything = slice(None)
        for rows, columns in ((slice(32, 96), everything), (everything, slice(64, 128)),
                              (slice(64, 128), slice(33, 250))):  # fmt: skip
            assert torch.equal(source.read(name, rows, columns), whole[rows, columns])


@pytest.mark.parametrize("kind", [Kind.Q4_0, Kind.Q4_1, Kind.Q8_0])
def test_any_part_as_it_is_stored(tmp_path: Path, kind: Kind) -> None:
    """Exactly the dequantised values, rows of q and k in our order."""
    path = write_gguf(make_model(QUANTISED), tmp_path / "model.gguf", quantised=kind)
    source = GGUFWeights(path, head_dim=32)
    everything = slice(None)
    for name in ("model.embed_tokens.weight", "model.layers.1.mlp.down_proj.weight",
                 "model.layers.1.self_attn.q_proj.weight"):  # fmt: skip
        for rows, columns in ((everything, None), (slice(32, 96), None), (everything, slice(64, 128)),
                              (slice(64, 96), slice(32, 256))):  # fmt: skip
            kept = source.read_quantized(name, rows, columns)
            assert kept is not None
            assert torch.equal(kept.dequantised(), source.read(name, rows, columns))
        assert source.read_quantized(name, everything, slice(16, 64)) is None, "it would cut a group"


def test_formats_without_a_kernel_are_dequantised(tmp_path: Path) -> None:
    path = write_gguf(make_model(QUANTISED), tmp_path / "model.gguf", quantised=Kind.Q5_1)
    assert GGUFWeights(path, head_dim=32).read_quantized("model.layers.1.mlp.down_proj.weight") is None
    assert torch.equal(our_logits(path, TOKENS, weight_format="gguf"), our_logits(path, TOKENS))


@pytest.mark.parametrize("tp_size", [1, 2])
@pytest.mark.parametrize("kind", [Kind.Q4_0, Kind.Q4_1, Kind.Q8_0])
def test_a_model_as_it_is_stored(tmp_path: Path, kind: Kind, tp_size: int) -> None:
    path = write_gguf(make_model(QUANTISED), tmp_path / "model.gguf", quantised=kind)
    expected = our_logits(path, TOKENS)
    torch.testing.assert_close(our_logits(path, TOKENS, tp_size, "gguf"), expected, atol=1e-4, rtol=1e-5)
    layer = load(path, weight_format="gguf").layers[0]
    for linear in (layer.qkv, layer.attention_out, layer.gate_up, layer.down):
        assert isinstance(linear, NativeQuantizedLinear | PlainQuantizedLinear)


def test_only_the_share_is_dequantised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_gguf(make_model(QUANTISED), tmp_path / "model.gguf", quantised=Kind.Q8_0)
    sizes = []

    def counting(blocks: np.ndarray, kind: Kind) -> np.ndarray:
        sizes.append(blocks.nbytes)
        return dequantize(blocks, kind)

    dequantize = gguf_weights.dequantize
    monkeypatch.setattr(gguf_weights, "dequantize", counting)
    load(path)
    whole = sum(sizes)
    sizes.clear()
    load(path, tp_rank=1, tp_size=2)
    assert 0.45 < sum(sizes) / whole < 0.55


@pytest.mark.parametrize(("more", "reason"), [
    ({"llama.rope.scaling.type": "longrope"}, "the RoPE scaling 'longrope'"),
    ({"llama.expert_count": 8}, "a mixture of 8 experts"),
    ({"llama.rope.dimension_count": 4}, "rotary embedding of a part of each head"),
])  # fmt: skip
def test_features_that_are_missing_are_refused(tmp_path: Path, more: dict, reason: str) -> None:
    path = write_gguf(make_model(CONFIGS["llama"]), tmp_path / "model.gguf", more=more)
    with pytest.raises(UnsupportedModelError, match=reason):
        load_model_config(path)


def test_one_of_several_parts_is_refused(tmp_path: Path) -> None:
    path = write_gguf(make_model(CONFIGS["llama"]), tmp_path / "model.gguf", more={"split.count": 3})
    with pytest.raises(ModelError, match="one of 3 parts; merge them"):
        load_model_config(path)


def test_a_window_limits_the_context(tmp_path: Path) -> None:
    path = write_gguf(make_model(CONFIGS["llama"]), tmp_path / "model.gguf",
                      more={"llama.attention.sliding_window": 128})  # fmt: skip
    assert load_model_config(path).max_model_len == 128


def test_damaged_files(tmp_path: Path) -> None:
    whole = write_gguf(make_model(CONFIGS["llama"]), tmp_path / "model.gguf").read_bytes()
    damaged = {"cut.gguf": whole[:-1000], "header.gguf": whole[:200], "text.gguf": b"hello",
               "empty.gguf": b"", "old.gguf": whole[:4] + b"\x01\0\0\0" + whole[8:]}  # fmt: skip
    for name, content in damaged.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ModelError, match=f"{name} is no readable GGUF file"):
            load_model_config(tmp_path / name)


def test_missing_tensors_are_named(tmp_path: Path) -> None:
    source = GGUFWeights(write_gguf(make_model(CONFIGS["llama"]), tmp_path / "model.gguf"), head_dim=8)
    missing = r"tensor model\.layers\.9\.mlp\.up_proj\.weight \(there: blk\.9\.ffn_up\.weight\) is missing"
    with pytest.raises(ModelError, match=missing):
        source.read("model.layers.9.mlp.up_proj.weight")
