"""What Hugging Face transformers makes of a prompt, in fp32: the other side of every comparison."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import regex
import torch
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedModel

from longspan.sampling_params import SamplingParams
from longspan.worker.sampler import Sampler
from longspan.worker.sampling_state import SamplingState
from tests.models.tiny import fresh_rope

Decode = Callable[[list[int]], str]


@dataclass(frozen=True)
class Reference:
    """Tokens that follow one prompt, and log-probabilities of the whole vocabulary at each of them, [T, V]."""

    tokens: list[int]
    logprobs_TV: Tensor


class Theirs:
    """One model's references, each worked out once. What chooses a token of its logits is our own sampler."""

    def __init__(self, model: PreTrainedModel, decode: Decode | None = None) -> None:
        self.model = model
        self.decode = decode
        assert model.generation_config is not None
        model.generation_config.eos_token_id = None  # nothing ends before we say so
        self._known: dict[tuple[tuple[int, ...], SamplingParams], Reference] = {}

    def of(self, prompt: list[int], params: SamplingParams, num_tokens: int) -> Reference:
        """The first `num_tokens`, whatever the params say of the end."""
        key = tuple(prompt), params
        if key not in self._known or len(self._known[key].tokens) < num_tokens:
            self._known[key] = self._generate(prompt, params, num_tokens)
        known = self._known[key]
        return Reference(known.tokens[:num_tokens], known.logprobs_TV[:num_tokens])

    def prompt_logprobs(self, prompt: list[int]) -> Tensor:
        """Log-probabilities of what follows each of the prompt's tokens, [T, V]."""
        fresh_rope(self.model)
        with torch.inference_mode():
            logits: Tensor = self.model(torch.tensor([prompt])).logits
        return logits[0].float().log_softmax(dim=-1)

    def _generate(self, prompt: list[int], params: SamplingParams, num_tokens: int) -> Reference:
        wanted = params.structured_outputs
        pattern = None if wanted is None else _Pattern(wanted.text, self.decode)
        chooser = _Chooser(SamplingState.start(params, params.seed or 0, prompt), pattern)
        fresh_rope(self.model)
        ids = torch.tensor([prompt])
        self.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=num_tokens, do_sample=False,
            logits_processor=[chooser], pad_token_id=0,
        )  # fmt: skip
        return Reference(chooser.tokens, torch.stack(chooser.logprobs))


class _Pattern:
    """Which tokens a regular expression allows, by trying all of them with a matcher of beginnings of texts."""

    def __init__(self, pattern: str, decode: Decode | None) -> None:
        assert decode is not None, "give Theirs the tokenizer's"
        self.pattern = regex.compile(pattern)
        self.decode = decode
        self.texts: list[str] = []

    def restrict(self, scores: Tensor, tokens: list[int]) -> Tensor:
        """Minus infinity for what is not allowed behind these tokens. scores: [1, V]."""
        vocab = scores.shape[1]
        self.texts = self.texts or [self.decode([token]) for token in range(vocab)]
        before = self.decode(tokens)
        fits = {text for text in set(self.texts) if text and self.pattern.fullmatch(before + text, partial=True)}
        banned = torch.tensor([[text not in fits for text in self.texts]])
        return scores.masked_fill(banned, -torch.inf)


class _Chooser(LogitsProcessor):
    """Leaves nothing but the token that our sampler takes, of those that the pattern allows."""

    def __init__(self, state: SamplingState, pattern: _Pattern | None) -> None:
        self.state = state
        self.pattern = pattern
        self.tokens: list[int] = []
        self.logprobs: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        possible = scores if self.pattern is None else self.pattern.restrict(scores, self.tokens)
        (chosen,) = Sampler().sample(possible.float(), [self.state])
        self.state.append(chosen.token_id)
        self.tokens.append(chosen.token_id)
        self.logprobs.append(scores[0].float().log_softmax(dim=-1))
        return torch.full_like(scores, -torch.inf).index_fill(1, torch.tensor([chosen.token_id]), 0.0)
