"""What Hugging Face transformers makes of a prompt, in fp32: the other side of every comparison."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedModel

from longspan.sampling_params import SamplingParams
from longspan.worker.sampler import Sampler
from longspan.worker.sampling_state import SamplingState


@dataclass(frozen=True)
class Reference:
    """Tokens that follow one prompt, and log-probabilities of the whole vocabulary at each of them, [T, V]."""

    tokens: list[int]
    logprobs_TV: Tensor


class Theirs:
    """One model's references, each worked out once. What chooses a token of its logits is our own sampler."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
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

    def _generate(self, prompt: list[int], params: SamplingParams, num_tokens: int) -> Reference:
        chooser = _Chooser(SamplingState.start(params, params.seed or 0, prompt))
        ids = torch.tensor([prompt])
        self.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=num_tokens, do_sample=False,
            logits_processor=[chooser], pad_token_id=0,
        )  # fmt: skip
        return Reference(chooser.tokens, torch.stack(chooser.logprobs))


class _Chooser(LogitsProcessor):
    """Leaves nothing but the token that our sampler takes."""

    def __init__(self, state: SamplingState) -> None:
        self.state = state
        self.tokens: list[int] = []
        self.logprobs: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        (chosen,) = Sampler().sample(scores.float(), [self.state])
        self.state.append(chosen.token_id)
        self.tokens.append(chosen.token_id)
        self.logprobs.append(scores[0].float().log_softmax(dim=-1))
        return torch.full_like(scores, -torch.inf).index_fill(1, torch.tensor([chosen.token_id]), 0.0)
