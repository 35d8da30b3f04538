"""How a request wants its tokens chosen, when it ends, and how soon they should come."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from longspan.errors import RequestError
from longspan.service_level import DEFAULT_SERVICE, ServiceLevel
from longspan.structured_outputs import StructuredOutputs

MAX_LOGPROBS = 20
MAX_PROMPT_LOGPROBS = 200_000  # log-probabilities of one prompt, over all of its tokens
MAX_LOGIT_BIAS = 1024
MIN_REPETITION_PENALTY = 0.01  # logits are divided by it, and must stay finite


_WHOLE = ("max_tokens", "min_tokens", "top_k", "seed", "logprobs", "prompt_logprobs")
_REAL = ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Sampling settings, in OpenAI's and vLLM's names.

    `temperature` 0 is greedy. `top_k` 0 and `top_p` 1 and `min_p` 0 are off. `max_tokens` None means
    "as many as fit". Before `min_tokens` of output there is no end: end-of-sequence tokens and `stop_token_ids` are not
    chosen, and stop strings not looked for. `logit_bias`: token ids, and what is added to their logits; a mapping
    becomes pairs. `logprobs` None means none; 0 gives the chosen token's only; n adds the n best. `prompt_logprobs`:
    the same of the prompt's tokens, each after those before it.
    `structured_outputs`: what the output must look like. `service`: deadlines and priority, for policies that go by
    them. `cache`: whether requests that begin alike may use its KV, and it theirs; those with a `cache_salt` find only
    each other's. A single stop string may stand for itself, and numbers may be numpy's.

    Raises:
        RequestError: a value is of another type or out of range; the message names field, value and range.
    """

    max_tokens: int | None = None
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    structured_outputs: StructuredOutputs | None = None
    service: ServiceLevel = DEFAULT_SERVICE
    cache: bool = True
    cache_salt: str | None = None

    def __post_init__(self) -> None:
        self._settle_types()
        _check_range("temperature", self.temperature, 0.0, 2.0)
        _check_range("top_p", self.top_p, 0.0, 1.0, low_open=True)
        _check_range("min_p", self.min_p, 0.0, 1.0)
        _check_range("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _check_range("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _check_range("repetition_penalty", self.repetition_penalty, MIN_REPETITION_PENALTY, 10.0)
        if self.max_tokens is not None:
            _check_range("max_tokens", self.max_tokens, 1, math.inf)
        _check_range("min_tokens", self.min_tokens, 0, math.inf if self.max_tokens is None else self.max_tokens)
        if self.seed is not None:
            _check_range("seed", self.seed, -(2**63), 2**63 - 1)
        # vLLM clients send -1 for "off"; both spellings mean the same here.
        if self.top_k == -1:
            object.__setattr__(self, "top_k", 0)
        _check_range("top_k", self.top_k, 0, math.inf)
        for name in ("logprobs", "prompt_logprobs"):
            if (number := getattr(self, name)) is not None:
                _check_range(name, number, 0, MAX_LOGPROBS)
        if any(not text for text in self.stop):
            raise RequestError("stop holds an empty string; leave it out", param="stop")

    def _settle_types(self) -> None:
        """Fields become what they are declared as, where that says the same; nothing else can travel to a worker."""
        settled: dict[str, Any] = {"stop": _texts(self.stop)}
        settled["stop_token_ids"] = tuple(_whole("stop_token_ids", one) for one in _several(self.stop_token_ids))
        for name in _WHOLE:
            if (value := getattr(self, name)) is not None or name in ("top_k", "min_tokens"):
                settled[name] = _whole(name, value)
        for name in _REAL:
            settled[name] = _real(name, getattr(self, name))
        settled["logit_bias"] = _biases(self.logit_bias)
        for name, value in settled.items():
            object.__setattr__(self, name, value)
        for name in ("include_stop_str_in_output", "ignore_eos", "skip_special_tokens", "cache"):
            if not isinstance(value := getattr(self, name), bool):
                raise _wrong_type(name, value, "True or False")
        if self.cache_salt is not None and not isinstance(self.cache_salt, str):
            raise _wrong_type("cache_salt", self.cache_salt, "a text")
        if not isinstance(self.service, ServiceLevel):
            raise _wrong_type("service", self.service, "a ServiceLevel")
        if not isinstance(self.structured_outputs, StructuredOutputs | None):
            raise _wrong_type("structured_outputs", self.structured_outputs, "StructuredOutputs")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0

    @property
    def has_penalties(self) -> bool:
        return (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) != (1.0, 0.0, 0.0)


def _biases(given: object) -> tuple[tuple[int, float], ...]:
    if not given:
        return ()
    try:
        pairs = [*(given.items() if isinstance(given, Mapping) else given)]  # type: ignore[misc]  # a TypeError is caught
        biases = {_whole("logit_bias", token): _real("logit_bias", bias) for token, bias in pairs}
    except (TypeError, ValueError):
        raise _wrong_type("logit_bias", given, "a mapping of token ids to numbers") from None
    if len(biases) > MAX_LOGIT_BIAS:
        raise RequestError(f"logit_bias has {len(biases)} tokens, but at most {MAX_LOGIT_BIAS}", param="logit_bias")
    for token, bias in biases.items():
        _check_range("logit_bias", bias, -100.0, 100.0)
        if token < 0:
            raise RequestError(f"logit_bias has the token id {token}, but ids are 0 at least", param="logit_bias")
    return tuple(sorted(biases.items()))


def _check_range(name: str, value: float, low: float, high: float, *, low_open: bool = False) -> None:
    inside = (low < value if low_open else low <= value) and value <= high
    if not inside:  # also catches NaN
        bracket = "(" if low_open else "["
        raise RequestError(f"{name} is {value}, but must lie in {bracket}{low}, {high}]", param=name)


def _whole(name: str, value: object) -> int:
    if type(value) is int:
        return value
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise _wrong_type(name, value, "a whole number")
    return int(value)


def _real(name: str, value: object) -> float:
    if type(value) is float or type(value) is int:
        return value
    if isinstance(value, bool) or not isinstance(value, Real):
        raise _wrong_type(name, value, "a number")
    return float(value)


def _texts(stop: object) -> tuple[str, ...]:
    if isinstance(stop, str):
        return (stop,)
    texts = _several(stop)
    if not all(isinstance(text, str) for text in texts):
        raise _wrong_type("stop", stop, "a text, or several")
    return texts


def _several(value: object) -> tuple[Any, ...]:
    """What is no collection stands for itself, so that the message can name it."""
    return tuple(value) if isinstance(value, Iterable) and not isinstance(value, str) else (value,)


def _wrong_type(name: str, value: object, wanted: str) -> RequestError:
    return RequestError(f"{name} is {repr(value)[:100]}, but must be {wanted}", param=name, code="invalid_type")
