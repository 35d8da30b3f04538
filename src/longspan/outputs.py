"""What the engine gives back for a request, piece by piece."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

from longspan.core.events import FinishReason
from longspan.metrics.elasticity import Elasticity
from longspan.metrics.iterations import Iterations
from longspan.worker_usage import WorkerUsage


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One token and its natural-log probability. `bytes` are what it adds to the text's UTF-8, which may be part of a
    character; `text` is them decoded."""

    token_id: int
    bytes: bytes
    logprob: float
    rank: int

    @property
    def text(self) -> str:
        return self.bytes.decode(errors="replace")


@dataclass(frozen=True, slots=True)
class PositionLogprobs:
    """The chosen token of one output position, and the best ones, best first.

    text_offset: characters of the output's text before the token, or before the character that it is a part of. A stop
        string may end the text before.
    """

    chosen: TokenLogprob
    top: tuple[TokenLogprob, ...] = ()
    text_offset: int = 0


class PromptPositions(Protocol):
    """Log-probabilities of a prompt. To make them takes a while for a long one, so whoever wants them asks."""

    top: int

    def __len__(self) -> int: ...

    def token_bytes(self, token_id: int) -> bytes:
        """Return what a token adds to a text's UTF-8."""
        ...

    def positions(self) -> Iterator[tuple[int, PositionLogprobs | None]]:
        """Yield each token and its log-probabilities, None for the first. text_offset: in the prompt's own text."""
        ...


@dataclass(slots=True)
class RequestTimes:
    """Seconds on the engine's monotonic clock; None until it happened."""

    arrived: float
    scheduled: float | None = None
    first_token: float | None = None
    last_token: float | None = None
    finished: float | None = None


@dataclass(frozen=True, slots=True)
class Quote:
    """What was predicted at a request's arrival, in seconds from then to its first token.

    median_s, quote_s: half, and 95 of 100 such requests have it by then. promised_s: when it is promised. deadline_s:
    its goal. tpot_s: the goal of each further token.
    """

    median_s: float
    quote_s: float
    promised_s: float
    deadline_s: float
    tpot_s: float


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """The part that is new since the previous output of this request (a delta).

    token_ids: the new tokens. text: the new text; may be empty while a character or a possible stop string is
    incomplete. finish_reason: set on the last output only. stop_reason: the stop string or token id that ended it.
    prompt_logprobs: with the first token, if they were asked for. quote: of policies that predict. num_preemptions: how
    often its KV was dropped. num_cached_tokens: of the prompt, whose KV was there.
    """

    request_id: str
    num_prompt_tokens: int
    num_output_tokens: int
    token_ids: tuple[int, ...] = ()
    text: str = ""
    logprobs: tuple[PositionLogprobs, ...] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    prompt_logprobs: PromptPositions | None = None
    times: RequestTimes = field(default_factory=lambda: RequestTimes(arrived=0.0))
    quote: Quote | None = None
    num_preemptions: int = 0
    num_cached_tokens: int = 0

    @property
    def finished(self) -> bool:
        return self.finish_reason is not None


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole answer, as the offline `LLM` returns it."""

    request_id: str
    prompt: str | None
    prompt_token_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason
    stop_reason: str | int | None
    logprobs: tuple[PositionLogprobs, ...] | None
    times: RequestTimes
    prompt_logprobs: tuple[PositionLogprobs | None, ...] | None = None
    num_cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A snapshot for gauges.

    num_batches, model_seconds: batches done since the start, and the time that their slowest instances spent inside
    the model. num_bad_logits: requests that ended since the model's logits were not finite. event_log_errors: 1 once
    the event log could not be written, and is off. kv_tokens_cached: slots of tokens that no request refers to now.
    num_looked_up, num_found: prompt tokens of all requests that began, and how many of them were computed before.
    iterations, elasticity: what became of batches, and of requests' groups; both go on. num_groups: sets of instances
    that have a batch. num_recomputed: tokens computed again, since their KV was gone. num_lost: tokens whose KV went
    with an instance. num_losses, num_missing: times that an instance was lost, instances that are not there now.
    workers: what each said of itself last.
    """

    num_running: int
    num_waiting: int
    kv_tokens_used: int
    kv_tokens_total: int
    num_instances: int
    num_preemptions: int
    kv_tokens_used_by_instance: tuple[int, ...]
    num_batches: int = 0
    model_seconds: float = 0.0
    num_migrations: int = 0
    num_bad_logits: int = 0
    event_log_errors: int = 0
    kv_tokens_cached: int = 0
    num_looked_up: int = 0
    num_found: int = 0
    kv_tokens_cached_by_instance: tuple[int, ...] = ()
    iterations: Iterations | None = None
    elasticity: Elasticity | None = None
    num_groups: int = 0
    num_recomputed: int = 0
    num_lost: int = 0
    num_losses: int = 0
    num_missing: int = 0
    workers: tuple[WorkerUsage, ...] = ()
