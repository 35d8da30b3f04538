"""Fifty prompts of real text, what Hugging Face transformers makes of them, and whether we agree."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from transformers import AutoModelForCausalLM

from longspan.engine.tokenizer import Tokenizer
from longspan.models.catalog import ResolvedModel
from longspan.outputs import Completion

NUM_TOKENS, TOP = 8, 10
LONG = [200, 400, 4000]
NUM_SHORT = 47


@dataclass(frozen=True)
class Reference:
    """Greedy tokens of each prompt, and the log-probabilities of the whole vocabulary at each of them."""

    prompts: list[list[int]]
    tokens: list[list[int]]
    logprobs: list[torch.Tensor]

    def first(self, count: int) -> Reference:
        return Reference(self.prompts[:count], self.tokens[:count], self.logprobs[:count])


def refer(hf_model, prompts: list[list[int]], num_tokens: int = NUM_TOKENS) -> Reference:
    tokens, logprobs = [], []
    for prompt in prompts:
        with torch.inference_mode():
            out = hf_model.generate(
                torch.tensor([prompt]), max_new_tokens=num_tokens, min_new_tokens=num_tokens, do_sample=False,
                return_dict_in_generate=True, output_logits=True, pad_token_id=0,
            )  # fmt: skip
        tokens.append(out.sequences[0, len(prompt) :].tolist())
        logprobs.append(torch.cat(out.logits).log_softmax(dim=-1))
    return Reference(prompts, tokens, logprobs)


def require_same(completions: Sequence[Completion], reference: Reference) -> None:
    """The same tokens; log-probabilities of the best `TOP` at each of them within 1e-3."""
    worst = 0.0
    for ours, tokens, logprobs in zip(completions, reference.tokens, reference.logprobs, strict=True):
        assert list(ours.token_ids) == tokens, f"prompt of {len(ours.prompt_token_ids)} tokens"
        assert ours.logprobs is not None
        for position, theirs in zip(ours.logprobs, logprobs, strict=True):
            assert len(position.top) == TOP
            worst = max(worst, *(abs(top.logprob - float(theirs[top.token_id])) for top in position.top))
    assert worst < 1e-3


@pytest.fixture(scope="session")
def hf_model(model: ResolvedModel):
    """The same GGUF, loaded and dequantised by transformers, in fp32."""
    torch.set_num_threads(1)  # OpenMP threads that wait for each other on a busy machine take forever
    return AutoModelForCausalLM.from_pretrained(
        model.path.parent, gguf_file=model.path.name, dtype=torch.float32
    ).eval()


@pytest.fixture(scope="session")
def prompts(model: ResolvedModel, moby_dick: str) -> list[list[int]]:
    """Pieces of 16 to 4,000 tokens, from all over the text."""
    text = Tokenizer.load(model).encode(moby_dick)
    draw = random.Random(0)
    lengths = [draw.randint(16, 64) for _ in range(NUM_SHORT)] + LONG
    starts = [draw.randrange(len(text) - length) for length in lengths]
    return [text[start : start + length] for start, length in zip(starts, lengths, strict=True)]


@pytest.fixture(scope="session")
def reference(hf_model, prompts: list[list[int]]) -> Reference:
    return refer(hf_model, prompts)
