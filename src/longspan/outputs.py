"""What the engine gives back for a request, piece by piece."""

from __future__ import annotations

from dataclasses import dataclass, field

from longspan.core.events import FinishReason


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


@dataclass(slots=True)
class RequestTimes:
    """Seconds on the engine's monotonic clock; None until it happened."""

    arrived: float
    scheduled: float | None = None
    first_token: float | None = None
    last_token: float | None = None
    finished: float | None = None


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """The part that is new since the previous output of this request (a delta).

    token_ids: the new tokens. text: the new text; may be empty while a character or a possible stop string is
    incomplete. finish_reason: set on the last output only. stop_reason: the stop string or token id that ended it.
    """

    request_id: str
    num_prompt_tokens: int
    num_output_tokens: int
    token_ids: tuple[int, ...] = ()
    text: str = ""
    logprobs: tuple[PositionLogprobs, ...] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    times: RequestTimes = field(default_factory=lambda: RequestTimes(arrived=0.0))

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


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A snapshot for gauges.

    num_batches, model_seconds: batches done since the start, and the time that their slowest instances spent inside
    the model. num_bad_logits: requests that ended since the model's logits were not finite. event_log_errors: 1 once
    the event log could not be written, and is off.
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
