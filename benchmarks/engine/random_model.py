"""Models of a few layers with random weights, of the shape of a real model's: where contexts count, and weights do not.

The vocabulary can be cut, so that the head has the share of all weights that it has in a model of thirty layers.
"""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from longspan.engine.tokenizer import Tokenizer
from longspan.models.catalog import resolve_model


@dataclass(frozen=True)
class RandomModel:
    """SmolLM2-135M's layers, unless other heads are asked for."""

    layers: int = 4
    heads: int = 9
    kv_heads: int = 3
    head_dim: int = 64
    hidden: int = 576
    ffn: int = 1536
    vocab: int = 49_152

    def config(self, max_tokens: int, **changes: Any) -> LlamaConfig:
        """For contexts up to so many tokens. changes: of what it says otherwise."""
        return LlamaConfig(**{
            "vocab_size": self.vocab, "hidden_size": self.hidden, "intermediate_size": self.ffn,
            "num_hidden_layers": self.layers, "num_attention_heads": self.heads, "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim, "max_position_embeddings": max_tokens, "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 5e6}, **changes,
        })  # fmt: skip

    def write(self, folder: Path, max_tokens: int) -> Path:
        """In bf16, with the default model's tokenizer. Returns the folder."""
        torch.manual_seed(0)
        LlamaForCausalLM(self.config(max_tokens)).to(torch.bfloat16).save_pretrained(folder)
        Tokenizer.load(resolve_model("smollm2-135m")).backend.save(str(folder / "tokenizer.json"))
        return folder

    def prompt(self, length: int, seed: int) -> list[int]:
        draw = random.Random(seed)
        return [draw.randrange(self.vocab) for _ in range(length)]

    @property
    def weights(self) -> int:
        """Parameters of the layers' matrices; the head is beside them."""
        projections = 2 * (self.heads + self.kv_heads) * self.head_dim
        return self.layers * self.hidden * (projections + 3 * self.ffn)

    @property
    def kv_bytes_per_token(self) -> int:
        """In bf16."""
        return self.layers * 2 * self.kv_heads * self.head_dim * 2

    def flops(self, tokens: int) -> dict[str, float]:
        """Of one prefill. Causal attention sees half of all pairs: 4 K flops for each pair and query head."""
        attention = 2.0 * self.layers * self.heads * self.head_dim * tokens**2
        return {"linear": 2.0 * self.weights * tokens, "attention": attention}

    def facts(self) -> dict[str, Any]:
        return asdict(self)
