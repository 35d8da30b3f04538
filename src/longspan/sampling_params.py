"""How a request wants its tokens chosen, when it ends, and how soon they should come."""

from __future__ import annotations

import math
from dataclasses import dataclass

from longspan.errors import RequestError
from longspan.service_level import DEFAULT_SERVICE, ServiceLevel

MAX_LOGPROBS = 20
MIN_REPETITION_PENALTY = 0.01  # logits are divided by it, and must stay finite


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Sampling settings, in OpenAI's and vLLM's names.

    `temperature` 0 is greedy. `top_k` 0 and `top_p` 1 and `min_p` 0 are off. `max_tokens` None means
    "as many as fit". `logprobs` None means none; 0 gives the chosen token's only; n adds the n best.
    `service`: deadlines and priority, for policies that go by them.

    Raises:
        RequestError: a value is out of range; the message names field, value and range.
    """

    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    logprobs: int | None = None
    service: ServiceLevel = DEFAULT_SERVICE

    def __post_init__(self) -> None:
        _check_range("temperature", self.temperature, 0.0, 2.0)
        _check_range("top_p", self.top_p, 0.0, 1.0, low_open=True)
        _check_range("min_p", self.min_p, 0.0, 1.0)
        _check_range("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _check_range("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _check_range("repetition_penalty", self.repetition_penalty, MIN_REPETITION_PENALTY, 10.0)
        if self.max_tokens is not None:
            _check_range("max_tokens", self.max_tokens, 1, math.inf)
        if self.seed is not None:
            _check_range("seed", self.seed, -(2**63), 2**63 - 1)
        # vLLM clients send -1 for "off"; both spellings mean the same here.
        if self.top_k == -1:
            object.__setattr__(self, "top_k", 0)
        _check_range("top_k", self.top_k, 0, math.inf)
        if self.logprobs is not None:
            _check_range("logprobs", self.logprobs, 0, MAX_LOGPROBS)
        if any(not text for text in self.stop):
            raise RequestError("stop holds an empty string; leave it out", param="stop")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0

    @property
    def has_penalties(self) -> bool:
        return (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) != (1.0, 0.0, 0.0)


def _check_range(name: str, value: float, low: float, high: float, *, low_open: bool = False) -> None:
    inside = (low < value if low_open else low <= value) and value <= high
    if not inside:  # also catches NaN
        bracket = "(" if low_open else "["
        raise RequestError(f"{name} is {value}, but must lie in {bracket}{low}, {high}]", param=name)
