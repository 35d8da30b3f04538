"""What a model is: sizes, and which of the family's variations it uses.

Every feature that changes the arithmetic is either represented here or refused by name: a model never runs
almost right.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from longspan.errors import ModelError, UnsupportedModelError
from longspan.layers.rope_config import RopeConfig

TorchDType = Literal["float32", "float16", "bfloat16"]


@dataclass(frozen=True, slots=True)
class Family:
    """The differences of one architecture from Llama. `gguf` is llama.cpp's name for it."""

    gguf: str
    qkv_bias: bool = False
    qk_norm: bool = False
    default_head_dim: int | None = None
    default_window: int | None = None
    window_is_optional: bool = False


FAMILIES = {
    "LlamaForCausalLM": Family("llama"),
    "MistralForCausalLM": Family("llama", default_window=4096),
    "Qwen2ForCausalLM": Family("qwen2", qkv_bias=True, default_window=4096, window_is_optional=True),
    "Qwen3ForCausalLM": Family(
        "qwen3", qk_norm=True, default_head_dim=128, default_window=4096, window_is_optional=True
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """A decoder-only model of the Llama family. See `FAMILIES` for what runs.

    max_position_embeddings, stretches_to: tokens, as in `Reach`.
    """

    architecture: str
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    rms_norm_eps: float
    rope: RopeConfig
    max_position_embeddings: int
    stretches_to: int = 0
    tie_word_embeddings: bool = False
    qkv_bias: bool = False
    qk_norm: bool = False
    sliding_window: int | None = None
    torch_dtype: TorchDType = "bfloat16"
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ModelError(f"{self.num_heads} query heads cannot share {self.num_kv_heads} KV heads evenly")
        if self.head_dim % 2:
            raise ModelError(f"head_dim is {self.head_dim}, but rotary embedding needs an even one")

    @property
    def max_model_len(self) -> int:
        """Longest prompt plus output, tokens. Up to its window, sliding-window attention is full attention,
        so a model that has one is served exactly, but no further."""
        return min(self.max_position_embeddings, self.sliding_window or self.max_position_embeddings)

    @property
    def longest_model_len(self) -> int:
        """What `max_model_len` may be set to. With RoPE scaling by a factor, some configurations give the length before
        it, as transformers' documentation asked for, and some that after it: which, cannot be told."""
        longest = max(self.max_position_embeddings, self.stretches_to)
        return min(longest, self.sliding_window or longest)

    @property
    def max_model_len_reason(self) -> str:
        if self.max_model_len < self.max_position_embeddings:
            return (
                f"its sliding window of {self.max_model_len} tokens (it reads up to "
                f"{self.max_position_embeddings}, but sliding windows are not implemented)"
            )
        return f"its max_position_embeddings of {self.max_position_embeddings} tokens"

    def kv_bytes_per_token(self, dtype_bytes: int, num_kv_heads: int, num_layers: int) -> int:
        """Return the KV cache of one token, bytes, on a device with so many of the KV heads and layers."""
        return 2 * num_layers * num_kv_heads * self.head_dim * dtype_bytes


def unsupported_architecture(path: Path, name: str) -> UnsupportedModelError:
    runs = ", ".join(FAMILIES)
    return UnsupportedModelError(f"{path} is a {name}, which is not implemented; these run: {runs}")


def unsupported_feature(path: Path, what: str) -> UnsupportedModelError:
    return UnsupportedModelError(f"{path} needs {what}, which is not implemented")
