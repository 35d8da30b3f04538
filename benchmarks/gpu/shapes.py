"""Models with random weights of a real model's shape, made where they are used: nothing is fetched or carried."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from longspan.layers.rope_config import RopeConfig
from longspan.models.architecture import ModelConfig
from longspan.models.stored_shapes import stored_shapes
from longspan.pipeline import PipelineStage


@dataclass(frozen=True)
class ModelShape:
    """A Llama. contexts: tokens, short, long and very long."""

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    contexts: tuple[int, int, int]
    prompts: tuple[int, int, int]
    chunk: int
    max_tokens: int = 1 << 20

    @property
    def config(self) -> ModelConfig:
        return ModelConfig(
            architecture="LlamaForCausalLM", num_layers=self.layers, hidden_size=self.hidden, num_heads=self.heads,
            num_kv_heads=self.kv_heads, head_dim=self.head_dim, intermediate_size=self.ffn, vocab_size=self.vocab,
            rms_norm_eps=1e-5, rope=RopeConfig(theta=5e5), max_position_embeddings=self.max_tokens,
        )  # fmt: skip

    @property
    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Shapes of all weights by their Hugging Face names."""
        return dict(stored_shapes(self.config, PipelineStage(range(self.layers))))

    @property
    def weights_read(self) -> int:
        """Parameters that a decode step reads: all but the embedding."""
        return sum(_size(shape) for shape in self.tensors.values()) - self.vocab * self.hidden

    @property
    def kv_elements_per_token(self) -> int:
        return self.layers * 2 * self.kv_heads * self.head_dim

    def prefill_flops(self, tokens: int) -> float:
        """Matrices of all layers, causal attention (the half that is not masked), and the head for one token."""
        matrices = sum(_size(shape) for name, shape in self.tensors.items() if "proj" in name)
        attention = 2.0 * self.layers * tokens**2 * self.heads * self.head_dim
        return 2.0 * matrices * tokens + attention + 2.0 * self.vocab * self.hidden

    def facts(self) -> dict[str, Any]:
        return asdict(self)

    def write(self, folder: Path) -> Path:
        """As a folder in Hugging Face layout, in bf16, with a byte-level tokenizer. Returns the folder."""
        source = RandomWeights(self, torch.device("cpu"), torch.bfloat16)
        save_file({name: source.read(name) for name in self.tensors}, folder / "model.safetensors")
        config = {
            "architectures": ["LlamaForCausalLM"], "hidden_size": self.hidden, "intermediate_size": self.ffn,
            "num_hidden_layers": self.layers, "num_attention_heads": self.heads, "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim, "vocab_size": self.vocab, "rms_norm_eps": 1e-5, "rope_theta": 5e5,
            "max_position_embeddings": 8192, "eos_token_id": 0,
        }  # fmt: skip
        (folder / "config.json").write_text(json.dumps(config))
        _byte_level(self.vocab).save(str(folder / "tokenizer.json"))
        return folder


class RandomWeights:
    """`WeightSource`: a tensor is drawn on the device when it is read, from a seed of its own."""

    def __init__(self, shape: ModelShape, device: torch.device, dtype: torch.dtype) -> None:
        self.tensors = shape.tensors
        self.seeds = {name: seed for seed, name in enumerate(self.tensors)}
        self.device = device
        self.dtype = dtype

    def shape(self, name: str) -> tuple[int, ...]:
        return self.tensors[name]

    def read(self, name: str, rows: slice | None = None, columns: slice | None = None) -> torch.Tensor:
        shape = self.tensors[name]
        generator = torch.Generator(self.device).manual_seed(self.seeds[name])
        values = torch.empty(shape, dtype=self.dtype, device=self.device)
        if len(shape) == 1:
            values.uniform_(0.8, 1.2, generator=generator)
        else:
            values.normal_(0.0, shape[-1] ** -0.5, generator=generator)
        values = values[rows or slice(None)]
        return values if columns is None else values[:, columns]


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size


def _byte_level(vocab: int) -> Any:
    """A tokenizer of single bytes. Rows of the embedding beyond them stand for no text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<end>", *alphabet, *(f"<{i}>" for i in range(vocab - 1 - len(alphabet)))]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


TINY = ModelShape(
    "tiny", layers=2, hidden=256, heads=4, kv_heads=2, head_dim=64, ffn=512, vocab=1000,
    contexts=(64, 200, 500), prompts=(64, 200, 500), chunk=128,
)  # fmt: skip
LLAMA_3_8B = ModelShape(
    "Llama-3-8B", layers=32, hidden=4096, heads=32, kv_heads=8, head_dim=128, ffn=14336, vocab=128256,
    contexts=(1 << 10, 1 << 15, 1 << 17), prompts=(1 << 12, 1 << 15, 1 << 17), chunk=1 << 13,
)  # fmt: skip
