"""Requests as clients send them: OpenAI's fields, vLLM's sampling extras, service levels.

`body.py` decodes them, within bounds. A field that would change the answer and is not served is refused by name; any
other unknown field is let through unread.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SkipValidation

from longspan.entrypoints.openai.bounds import (
    MAX_NAME_CHARS,
    MAX_STOP_CHARS,
    MAX_STOP_TOKEN_IDS,
    MAX_STOPS,
    MAX_STOPS_CHARS,
)
from longspan.entrypoints.openai.messages import ChatMessage
from longspan.entrypoints.openai.unsupported import UNSUPPORTED_CHAT, UNSUPPORTED_COMPLETION, Harmless
from longspan.errors import RequestError
from longspan.sampling_params import MAX_LOGPROBS, MIN_REPETITION_PENALTY, SamplingParams
from longspan.service_level import IfLate, ServiceLevel

MAX_CHOICES = 128
INT32_MAX = 2**31 - 1
COMPLETION_DEFAULT_MAX_TOKENS = 16  # OpenAI's


def whole(value: object) -> object:
    """Return a whole number written with a point as an integer: 16.0 is one in JSON."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def as_seed(number: int) -> int:
    """Return the seed that `number` stands for: itself, or what is left of it in 64 bits, from -2**63 to 2**63 - 1.

    Any whole number is one, since JSON readers differ in what they take for the last of 64 bits.
    """
    return (number + 2**63) % 2**64 - 2**63


WHOLE = BeforeValidator(whole)  # behind the bounds, so that the schema has them
Milliseconds = Annotated[float, Field(ge=0.001, le=1e9, allow_inf_nan=False)]
TokenLimit = Annotated[int, Field(ge=1, le=INT32_MAX), WHOLE]
StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]
StopStrings = Annotated[
    list[StopString],
    Field(max_length=MAX_STOPS),
    BeforeValidator(
        lambda stop: [stop] if isinstance(stop, str) else stop, json_schema_input_type=StopString | list[StopString]
    ),
]


class StreamOptions(BaseModel):
    model_config = ConfigDict(strict=True)

    include_usage: bool = False
    continuous_usage_stats: bool = False  # vLLM's: usage so far in every chunk


class SamplingFields(BaseModel):
    """What both endpoints share. None means the field's default, as for OpenAI."""

    model_config = ConfigDict(strict=True, protected_namespaces=(), arbitrary_types_allowed=True)
    unsupported: ClassVar[Harmless] = {}

    model: Annotated[str, Field(max_length=MAX_NAME_CHARS)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES), WHOLE] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=INT32_MAX), WHOLE] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: Annotated[int, AfterValidator(as_seed), WHOLE] | None = None
    repetition_penalty: Annotated[float, Field(ge=MIN_REPETITION_PENALTY, le=10)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    stop: StopStrings | None = None
    stop_token_ids: Annotated[
        list[Annotated[int, Field(ge=0, le=INT32_MAX), WHOLE]], Field(max_length=MAX_STOP_TOKEN_IDS)
    ] | None = None  # fmt: skip
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    min_tokens: Annotated[int, Field(ge=0, le=INT32_MAX), WHOLE] | None = None
    ttft_slo_ms: Milliseconds | None = None
    tpot_slo_ms: Milliseconds | None = None
    priority: Annotated[int, Field(ge=-INT32_MAX, le=INT32_MAX), WHOLE] | None = None
    if_late: IfLate | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @property
    def choices_per_prompt(self) -> int:
        return self.n or 1

    @property
    def usage_options(self) -> StreamOptions:
        return self.stream_options or StreamOptions()

    @property
    def limit_name(self) -> str:
        """The field that the client limits its tokens with."""
        return "max_tokens"

    def check(self) -> None:
        """Raises RequestError for a field that does not go with another."""
        if self.stream_options is not None and not self.stream:
            raise RequestError("stream_options needs stream: true", param="stream_options", code="invalid_value")
        # Load generators send min_tokens with ignore_eos; then it holds by itself.
        if self.min_tokens and (not self.ignore_eos or self.stop or self.stop_token_ids):
            raise RequestError(
                "min_tokens is supported only with ignore_eos: true and no stop or stop_token_ids",
                param="min_tokens", code="invalid_value",
            )  # fmt: skip
        if (chars := sum(map(len, self.stop or ()))) > MAX_STOPS_CHARS:
            raise RequestError(
                f"stop has {chars} characters, but at most {MAX_STOPS_CHARS} are looked for",
                param="stop", code="string_above_max_length",
            )  # fmt: skip

    def service_level(self) -> ServiceLevel:
        """Return what the request asks of the server's timeliness; the server's defaults where it says nothing."""
        return ServiceLevel(
            ttft_s=None if self.ttft_slo_ms is None else self.ttft_slo_ms / 1000,
            tpot_s=None if self.tpot_slo_ms is None else self.tpot_slo_ms / 1000,
            priority=self.priority or 0,
            if_late=self.if_late,
        )

    def sampling_params(
        self, defaults: Mapping[str, float], *, max_tokens: int | None, logprobs: int | None
    ) -> SamplingParams:
        """Make them. defaults: of fields that the request leaves out. Raises RequestError for a value out of range."""
        given: dict[str, Any] = dict(defaults) | {
            name: value
            for name in (
                "temperature", "top_p", "top_k", "min_p", "seed", "repetition_penalty", "presence_penalty",
                "frequency_penalty", "include_stop_str_in_output", "ignore_eos",
            )
            if (value := getattr(self, name)) is not None
        }  # fmt: skip
        return SamplingParams(
            **given,
            stop=tuple(self.stop or ()),
            stop_token_ids=tuple(self.stop_token_ids or ()),
            max_tokens=max_tokens,
            logprobs=logprobs,
            service=self.service_level(),
        )


class CompletionRequest(SamplingFields):
    """POST /v1/completions. `prompt` is a list of texts, or of arrays of token ids, by now."""

    unsupported: ClassVar[Harmless] = UNSUPPORTED_COMPLETION

    prompt: SkipValidation[list[Any]]
    max_tokens: TokenLimit | None = COMPLETION_DEFAULT_MAX_TOKENS
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS), WHOLE] | None = None
    add_special_tokens: bool = True

    @property
    def choices_name(self) -> str:
        """The field that asks for many choices."""
        return "prompt" if self.choices_per_prompt == 1 else "n"


class ChatCompletionRequest(SamplingFields):
    """POST /v1/chat/completions."""

    unsupported: ClassVar[Harmless] = UNSUPPORTED_CHAT

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_tokens: TokenLimit | None = None
    max_completion_tokens: TokenLimit | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS), WHOLE] | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    chat_template_kwargs: dict[str, Any] | None = None

    def check(self) -> None:
        super().check()
        if self.tools and self.tool_choice != "none":
            raise RequestError(
                "tools are not supported; leave them out, or set tool_choice: 'none'",
                param="tools", code="unsupported_parameter",
            )  # fmt: skip
        if self.tool_choice not in (None, "none", "auto"):
            raise RequestError("tool_choice is not supported", param="tool_choice", code="unsupported_parameter")
        if "tools" in (self.chat_template_kwargs or {}):
            raise RequestError(
                "tools cannot be set for a chat template", param="chat_template_kwargs", code="unsupported_parameter"
            )
        if self.top_logprobs and not self.logprobs:
            raise RequestError("top_logprobs needs logprobs: true", param="top_logprobs", code="invalid_value")

    @property
    def token_limit(self) -> int | None:
        """`max_completion_tokens` is the newer name and wins."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens

    @property
    def limit_name(self) -> str:
        return "max_completion_tokens" if self.max_completion_tokens is not None else "max_tokens"

    @property
    def num_characters(self) -> int:
        return sum(len(message.content or "") for message in self.messages)

    @property
    def num_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None
