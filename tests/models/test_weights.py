"""Safetensors folders, and how little of them each rank reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from longspan.errors import ModelError
from longspan.layers.quantized_linear import can_quantise, quantised_int8
from longspan.models.config import load_model_config
from longspan.models.safetensors_weights import SafetensorsWeights
from longspan.models.weights import WeightSource, open_weights

from .tiny import CONFIGS, SIZES, heads, hf_logits, load, make_model, our_logits


class CountingSource:
    """Passes reads on, and counts the values that come back."""

    def __init__(self, source: WeightSource) -> None:
        self.source = source
        self.read_of: dict[str, int] = {}

    def shape(self, name: str) -> tuple[int, ...]:
        return self.source.shape(name)

    def read(self, name: str, rows: slice | None = None, columns: slice | None = None) -> torch.Tensor:
        part = self.source.read(name, rows, columns)
        assert name not in self.read_of, "nothing is read twice"
        self.read_of[name] = part.numel()
        return part


@pytest.mark.parametrize("name", ["llama", "llama-tied-9-over-3", "qwen2", "qwen3"])
def test_ranks_read_their_shares_and_no_more(tmp_path: Path, name: str) -> None:
    model = make_model(CONFIGS[name])
    model.save_pretrained(tmp_path)
    sources = [CountingSource(open_weights(tmp_path, load_model_config(tmp_path))) for _ in range(3)]
    for rank, source in enumerate(sources):
        load(tmp_path, rank, 3, source)
    for parameter_name, parameter in model.named_parameters():
        shares = [source.read_of.get(parameter_name, 0) for source in sources]
        if "norm" in parameter_name:
            assert shares == [parameter.numel()] * 3
        else:
            assert sum(shares) == parameter.numel() and max(shares) < 0.4 * parameter.numel()


def test_parts_of_a_tensor(tmp_path: Path) -> None:
    model = make_model(CONFIGS["llama"])
    model.save_pretrained(tmp_path)
    source, name = SafetensorsWeights(tmp_path), "model.layers.0.mlp.down_proj.weight"
    whole = model.state_dict()[name]
    assert torch.equal(source.read(name), whole)
    assert torch.equal(source.read(name, rows=slice(3, 9)), whole[3:9])
    assert torch.equal(source.read(name, columns=slice(5, 70)), whole[:, 5:70])
    assert torch.equal(source.read(name, slice(0, 2), slice(1, 2)), whole[:2, 1:2])


def test_missing_tensors_and_files(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"neither model\.safetensors nor"):
        SafetensorsWeights(tmp_path)
    make_model(CONFIGS["llama"]).save_pretrained(tmp_path, max_shard_size="60KB")
    with pytest.raises(ModelError, match=r"tensor model\.layers\.7\.mlp\.up_proj\.weight is missing"):
        SafetensorsWeights(tmp_path).read("model.layers.7.mlp.up_proj.weight")
    first = min(tmp_path.glob("*.safetensors"))
    inside = next(name for name, file in SafetensorsWeights(tmp_path)._file_of.items() if file == first.name)
    first.write_bytes(first.read_bytes()[:100])
    with pytest.raises(ModelError, match=f"{first.name} cannot be read"):
        SafetensorsWeights(tmp_path).read(inside)
    first.unlink()
    with pytest.raises(ModelError, match=f"{first.name} cannot be read"):
        SafetensorsWeights(tmp_path).read(inside)


@pytest.mark.parametrize("tp_size", [1, 2])
def test_a_model_in_int8(tmp_path: Path, tp_size: int) -> None:
    """What transformers makes of the same rounded weights; matrices without whole groups stay as they are."""
    sizes = {**SIZES, "hidden_size": 64, "intermediate_size": 192}
    model = make_model(LlamaConfig(**sizes, **heads(4, 2, 24), tie_word_embeddings=True))
    model.save_pretrained(tmp_path)
    tokens = [(7 * i * i + 3 * i) % 101 for i in range(80)]
    before = hf_logits(model, tokens)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            is_cut = "o_proj" in name and tp_size == 2  # 48 columns for each device
            if weight.dim() == 2 and can_quantise(weight.shape[1]) and not is_cut:
                weight.copy_(quantised_int8(weight).dequantised())
    expected = hf_logits(model, tokens)
    assert not torch.allclose(before, expected, atol=1e-3)
    torch.testing.assert_close(our_logits(tmp_path, tokens, tp_size, "int8"), expected, atol=1e-4, rtol=1e-5)


def test_a_config_that_does_not_match_the_weights(tmp_path: Path) -> None:
    make_model(CONFIGS["llama"]).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"intermediate_size": 90}))
    with pytest.raises(ModelError, match=r"gate_proj\.weight has shape \(70, 72\) where .* \(90, 72\)"):
        load(tmp_path)
