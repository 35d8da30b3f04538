"""Tiny random models, made by transformers, and a plain way to run ours: what these tests share.

Shape suffixes: T tokens, S tokens so far, H query heads, G KV heads, K head_dim, V vocabulary.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice, product
from pathlib import Path
from string import ascii_lowercase

import tokenizers
import torch
from transformers import (
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from longspan.distributed.tensor_parallel import SingleDevice, TensorParallelGroup
from longspan.models.config import ModelConfig, load_model_config
from longspan.models.llama import LlamaModel
from longspan.models.sharding import TensorParallelShard
from longspan.models.weights import WeightFormat, WeightSource, open_weights
from tests.models.tokenizers_zoo import byte_level

CPU = torch.device("cpu")
SIZES = {"vocab_size": 101, "hidden_size": 72, "intermediate_size": 70, "num_hidden_layers": 3,
         "max_position_embeddings": 512, "rms_norm_eps": 1e-5,
         "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
LLAMA3_ROPE = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
               "high_freq_factor": 4.0, "original_max_position_embeddings": 64}  # fmt: skip


def heads(query: int, kv: int, head_dim: int) -> dict[str, int]:
    return {"num_attention_heads": query, "num_key_value_heads": kv, "head_dim": head_dim}


CONFIGS: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**SIZES, **heads(6, 3, 8)),
    "llama-tied-9-over-3": LlamaConfig(**SIZES, **heads(9, 3, 8), tie_word_embeddings=True),
    "llama3-wide-heads": LlamaConfig(**SIZES, **heads(6, 3, 16), rope_parameters=LLAMA3_ROPE),
    "llama-linear-rope": LlamaConfig(
        **SIZES, **heads(6, 6, 8), rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}
    ),
    "mistral": MistralConfig(**SIZES, **heads(6, 3, 8), sliding_window=None),
    "qwen2": Qwen2Config(**SIZES, **heads(6, 3, 8), tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SIZES, **heads(6, 3, 16), tie_word_embeddings=True),
}


ORIGINAL = 24
"""The context before scaling, tokens, of `scaled`."""


def scaled(config: PretrainedConfig, kind: str) -> PretrainedConfig:
    """The model with this RoPE scaling, by 16; with dynamic the config gives the length before it."""
    pairs = config.head_dim // 2 if getattr(config, "head_dim", None) else (
        config.hidden_size // config.num_attention_heads // 2
    )
    of_kind: dict[str, dict[str, object]] = {
        "yarn": {"factor": 16.0, "original_max_position_embeddings": ORIGINAL, "beta_fast": 4.0},
        "dynamic": {"factor": 16.0},
        "longrope": {
            "original_max_position_embeddings": ORIGINAL, "short_factor": [1.0 + 0.1 * i for i in range(pairs)],
            "long_factor": [1.0 + 3.0 * i for i in range(pairs)],
        },
    }  # fmt: skip
    values = config.to_dict() | {"rope_parameters": {"rope_type": kind, "rope_theta": 100.0, **of_kind[kind]}}
    return type(config).from_dict(
        values | {"max_position_embeddings": ORIGINAL if kind == "dynamic" else 16 * ORIGINAL}
    )


def fresh_rope(model: PreTrainedModel) -> None:
    """What transformers keeps of the longest sequence so far is forgotten: each request is the first."""
    rotary = model.model.rotary_emb
    model.model.rotary_emb = type(rotary)(model.config)


def make_model(config: PretrainedConfig, seed: int = 0) -> PreTrainedModel:
    """Every parameter random, norms and biases included, so that none can be forgotten unnoticed."""
    model = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config).eval().float()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.2 * values if "norm" in name else 0.15 * values)
    return model


def write_tiny_model(folder: Path, max_position_embeddings: int) -> Path:
    """Two layers with random weights, and a tokenizer of some hundred tokens; what an engine can serve in no time, for
    a real vocabulary takes each start seconds. Returns the folder."""
    backend = byte_level()
    return write_random_model(folder, backend, backend.get_vocab_size(), max_position_embeddings)


def write_random_model(
    folder: Path, backend: tokenizers.Tokenizer, rows: int, max_position_embeddings: int = 256
) -> Path:
    """Two layers with random weights, an embedding of so many rows, and this tokenizer. Returns the folder."""
    config = LlamaConfig(
        vocab_size=rows, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=max_position_embeddings,
        eos_token_id=backend.token_to_id("</s>") or 2,
    )  # fmt: skip
    make_model(config).save_pretrained(folder)
    backend.save(str(folder / "tokenizer.json"))
    return folder


def write_tiny_engine_model(folder: Path, config: PretrainedConfig) -> PreTrainedModel:
    """What an engine can serve, at once: random weights, and a tokenizer whose every token is two letters.

    Returns transformers' model.
    """
    model = make_model(config)
    model.save_pretrained(folder)
    words = islice(map("".join, product(ascii_lowercase, repeat=2)), config.vocab_size)
    vocab = {word: number for number, word in enumerate(words)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=[]))
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    return model


def hf_logits(model: PreTrainedModel, token_ids: Sequence[int]) -> torch.Tensor:
    with torch.inference_mode():
        return model(torch.tensor([list(token_ids)])).logits[0].float()


class CausalAttention:
    """Plain softmax attention over everything this object has seen: one sequence, its cache included."""

    def __init__(self) -> None:
        self.cache: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def __call__(self, layer: int, q_THK: torch.Tensor, k_TGK: torch.Tensor,
                 v_TGK: torch.Tensor) -> torch.Tensor:  # fmt: skip
        past = self.cache.get(layer, (k_TGK[:0], v_TGK[:0]))
        k_SGK, v_SGK = torch.cat((past[0], k_TGK)), torch.cat((past[1], v_TGK))
        self.cache[layer] = (k_SGK, v_SGK)
        group = q_THK.shape[1] // k_SGK.shape[1]
        k_SHK, v_SHK = (x.repeat_interleave(group, dim=1) for x in (k_SGK, v_SGK))
        scores_HTS = torch.einsum("thk,shk->hts", q_THK, k_SHK) * q_THK.shape[-1] ** -0.5
        T, S = len(q_THK), len(k_SHK)
        is_future_TS = torch.ones(T, S, dtype=torch.bool).triu(S - T + 1)
        weights_HTS = scores_HTS.masked_fill(is_future_TS, -torch.inf).softmax(dim=-1)
        return torch.einsum("hts,shk->thk", weights_HTS, v_SHK)


class ThreadGroup:
    """Tensor parallelism over threads: everyone lays a tensor on the table, then everyone reads them all."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.table: list[torch.Tensor] = [torch.empty(0)] * size
        self.barrier = threading.Barrier(size, timeout=60)

    def member(self, rank: int) -> TensorParallelGroup:
        return _Member(self, rank)

    def exchange(self, rank: int, tensor: torch.Tensor) -> list[torch.Tensor]:
        self.table[rank] = tensor.clone()
        self.barrier.wait()
        everyones = list(self.table)
        self.barrier.wait()
        return everyones


class _Member:
    def __init__(self, group: ThreadGroup, rank: int) -> None:
        self.group, self.rank, self.size = group, rank, group.size

    def all_reduce_(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.copy_(torch.stack(self.group.exchange(self.rank, tensor)).sum(0))

    def all_gather_vocab(self, local_logits_EV: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
        parts = self.group.exchange(self.rank, local_logits_EV)
        assert [part.shape[1] for part in parts] == list(sizes)
        return torch.cat(parts, dim=1)


def load(
    path: Path, tp_rank: int = 0, tp_size: int = 1, source: WeightSource | None = None,
    weight_format: WeightFormat = "none",
) -> LlamaModel:  # fmt: skip
    config: ModelConfig = load_model_config(path)
    shard = TensorParallelShard.of(config, tp_rank, tp_size)
    return LlamaModel.load(config, source or open_weights(path, config), shard, torch.float32, CPU, weight_format)


def our_logits(
    path: Path, token_ids: Sequence[int], tp_size: int = 1, weight_format: WeightFormat = "none"
) -> torch.Tensor:
    """Logits after every token, [T, V], as every rank sees them."""
    group = ThreadGroup(tp_size)
    everything = torch.arange(len(token_ids))

    def run(rank: int) -> torch.Tensor:
        model = load(path, rank, tp_size, weight_format=weight_format)
        tp = group.member(rank) if tp_size > 1 else SingleDevice()
        return model.forward(torch.tensor(list(token_ids)), everything, CausalAttention(), tp, everything)

    with ThreadPoolExecutor(tp_size) as threads:
        results = list(threads.map(run, range(tp_size)))
    for other in results[1:]:
        assert torch.equal(results[0], other)
    return results[0]
