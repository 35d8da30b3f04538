"""A model of one layer whose attention is sharp however long its context is; its tokens are bytes.

Weights of the usual size would make attention over a million random tokens a plain mean of all, which hides errors.
Here scores have a standard deviation of `SHARPNESS`, so that a few keys, anywhere, have most of the weight.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaForCausalLM

from benchmarks.engine.random_model import RandomModel
from longspan.entrypoints.openai.logprobs import token_name

VOCAB = 256
SHARPNESS = 3.0
LOGITS_STD = 2.0
MAX_POSITIONS = 2**20
_TEMPLATE = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"


@dataclass(frozen=True)
class LongModel(RandomModel):
    """Llama's architecture, one layer."""

    layers: int = 1
    heads: int = 2
    kv_heads: int = 1
    head_dim: int = 32
    hidden: int = 128
    ffn: int = 256
    vocab: int = VOCAB

    def write(self, folder: Path, max_tokens: int = MAX_POSITIONS) -> Path:
        """As a Hugging Face folder, in bf16, with a tokenizer and a chat template. Returns the folder."""
        torch.manual_seed(0)
        config = self.config(max_tokens, tie_word_embeddings=False, bos_token_id=None, eos_token_id=None)
        model = LlamaForCausalLM(config)
        for name, weight in model.named_parameters():
            if weight.dim() == 2:
                torch.nn.init.normal_(weight, std=_std(name, weight.shape[1]))
        model.to(torch.bfloat16).save_pretrained(folder)
        _write_tokenizer(folder)
        return folder

    def facts(self) -> dict[str, Any]:
        return {**super().facts(), "max_positions": MAX_POSITIONS}


def random_ids(count: int, seed: int) -> list[int]:
    ids: list[int] = np.random.default_rng(seed).integers(0, VOCAB, count).tolist()
    return ids


def id_of(name: str) -> int:
    """The token that the server's log probabilities call so."""
    return _IDS[name]


_IDS = {token_name(bytes([value])): value for value in range(VOCAB)}


def _std(name: str, inputs: int) -> float:
    if "embed_tokens" in name:
        return 1.0
    scale = SHARPNESS**0.5 if "q_proj" in name or "k_proj" in name else LOGITS_STD if "lm_head" in name else 1.0
    return scale / float(inputs) ** 0.5


def _write_tokenizer(folder: Path) -> None:
    """Each byte is a token, and its value the token's id."""
    names = _bytes_in_text()
    tokenizer = Tokenizer(models.BPE(vocab={names[value]: value for value in range(VOCAB)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    facts = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": _TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(facts))


def _bytes_in_text() -> dict[int, str]:
    """GPT-2's letters for bytes: those that print are themselves, the rest are counted up from 256."""
    plain = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [value for value in range(256) if value not in plain]
    return {value: chr(value) for value in plain} | {value: chr(256 + place) for place, value in enumerate(others)}
