"""Prompts of real text, what Hugging Face transformers makes of them, and whether we agree."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from transformers import PreTrainedModel

from longspan.engine.tokenizer import Tokenizer
from longspan.models.catalog import ResolvedModel
from longspan.outputs import Completion
from tests.exactness.theirs import Reference, Theirs

TOP = 10
LONG = [150, 500]
NUM_SHORT = 10


def require_same(completions: Sequence[Completion], references: Sequence[Reference]) -> None:
    """The same tokens; log-probabilities of the best `TOP` at each of them within 1e-3."""
    worst = 0.0
    for ours, theirs in zip(completions, references, strict=True):
        assert list(ours.token_ids) == theirs.tokens, f"prompt of {len(ours.prompt_token_ids)} tokens"
        assert ours.logprobs is not None
        for position, logprobs_V in zip(ours.logprobs, theirs.logprobs_TV, strict=True):
            assert len(position.top) == TOP
            worst = max(worst, *(abs(top.logprob - float(logprobs_V[top.token_id])) for top in position.top))
    assert worst < 1e-3


@pytest.fixture(scope="session")
def prompts(model: ResolvedModel, moby_dick: str) -> list[list[int]]:
    """Pieces of 16 to 500 tokens, from all over the text."""
    text = Tokenizer.load(model).encode(moby_dick)
    draw = random.Random(0)
    lengths = [draw.randint(16, 64) for _ in range(NUM_SHORT)] + LONG
    starts = [draw.randrange(len(text) - length) for length in lengths]
    return [text[start : start + length] for start, length in zip(starts, lengths, strict=True)]


@pytest.fixture(scope="session")
def theirs(model: ResolvedModel, hf_model: PreTrainedModel) -> Theirs:
    return Theirs(hf_model, Tokenizer.load(model).decode)
