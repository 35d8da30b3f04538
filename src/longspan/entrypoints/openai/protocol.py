"""Requests as clients send them: OpenAI's fields, vLLM's sampling extras, service levels.

`body.py` decodes them, within bounds. A field that would change the answer and is not served is refused by name; any
other unknown field is let through unread.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SkipValidation
from pydantic_core import PydanticCustomError

from longspan.entrypoints.openai.bounds import (
    MAX_NAME_CHARS,
    MAX_STOP_CHARS,
    MAX_STOP_TOKEN_IDS,
    MAX_STOPS,
    MAX_STOPS_CHARS,
)
from longspan.entrypoints.openai.chat_task import (
    ChatTask,
    Effort,
    Structure,
    structure_with_calls,
    thinking,
    wants_thoughts,
)
from longspan.entrypoints.openai.messages import ChatMessage
from longspan.entrypoints.openai.request_fields import Names, RequestFields
from longspan.entrypoints.openai.structure import StructureFields
from longspan.entrypoints.openai.tool_fields import ToolFields
from longspan.entrypoints.openai.tool_use import check_template_kwargs
from longspan.entrypoints.openai.unsupported import UNSUPPORTED_CHAT, UNSUPPORTED_COMPLETION, Harmless
from longspan.errors import RequestError
from longspan.sampling_params import MAX_LOGIT_BIAS, MAX_LOGPROBS, MIN_REPETITION_PENALTY, SamplingParams
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


def _biases(given: dict[str, Any]) -> dict[str, Any]:
    """Token ids, as JSON writes names of fields, and numbers."""
    if len(given) > MAX_LOGIT_BIAS:
        raise PydanticCustomError("too_long", f"it has {len(given)} tokens, but at most {MAX_LOGIT_BIAS} are read")
    for token, bias in given.items():
        if not _TOKEN_ID.fullmatch(token):
            raise PydanticCustomError("no_token_id", "its names must be token ids, such as \"17\"")
        if isinstance(bias, bool) or not isinstance(bias, int | float):
            raise PydanticCustomError("bias_type", f"of token {token} it must be a number")
        if not -100 <= bias <= 100:
            raise PydanticCustomError("bias_range", f"of token {token} it is {bias}, but must lie in [-100, 100]")
    return given


_TOKEN_ID = re.compile("0|[1-9][0-9]{0,9}")
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


class SamplingFields(RequestFields, StructureFields):
    """What both endpoints share. None means the field's default, as for OpenAI."""

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
    skip_special_tokens: bool | None = None
    min_tokens: Annotated[int, Field(ge=0, le=INT32_MAX), WHOLE] | None = None
    ttft_slo_ms: Milliseconds | None = None
    tpot_slo_ms: Milliseconds | None = None
    priority: Annotated[int, Field(ge=-INT32_MAX, le=INT32_MAX), WHOLE] | None = None
    if_late: IfLate | None = None
    logit_bias: Annotated[dict[str, Any], AfterValidator(_biases)] | None = None
    prompt_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS), WHOLE] | None = None
    cache: bool | None = None
    cache_salt: Annotated[str, Field(min_length=1, max_length=MAX_NAME_CHARS)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    progress: bool | None = None

    @property
    def choices_per_prompt(self) -> int:
        return self.n or 1

    @property
    def usage_options(self) -> StreamOptions:
        return self.stream_options or StreamOptions()

    @property
    def stop_strings(self) -> tuple[str, list[str]]:
        """The field that has them, and what it has."""
        return "stop", self.stop or []

    def check(self) -> None:
        """Raises RequestError for a field that does not go with another."""
        if self.stream_options is not None and not self.stream:
            raise RequestError("stream_options needs stream: true", param="stream_options", code="invalid_value")
        if self.progress and not self.stream:
            raise RequestError("progress needs stream: true", param="progress", code="invalid_value")
        if self.prompt_logprobs is not None and self.stream:
            raise RequestError(
                "prompt_logprobs are not streamed; leave out stream, or prompt_logprobs",
                param="prompt_logprobs", code="invalid_value",
            )  # fmt: skip
        name, stops = self.stop_strings
        if (chars := sum(map(len, stops))) > MAX_STOPS_CHARS:
            raise RequestError(
                f"{name} has {chars} characters, but at most {MAX_STOPS_CHARS} are looked for",
                param=name, code="string_above_max_length",
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
        self, defaults: Mapping[str, float], structure: Structure | None, *, max_tokens: int | None,
        logprobs: int | None,
    ) -> SamplingParams:  # fmt: skip
        """Make them. defaults: of fields that the request leaves out. structure: what the answer must look like.

        Raises RequestError for a value out of range.
        """
        given: dict[str, Any] = dict(defaults) | {
            name: value
            for name in (
                "temperature", "top_p", "top_k", "min_p", "seed", "repetition_penalty", "presence_penalty",
                "frequency_penalty", "include_stop_str_in_output", "ignore_eos", "min_tokens",
                "skip_special_tokens", "prompt_logprobs",
            )
            if (value := getattr(self, name)) is not None
        }  # fmt: skip
        return SamplingParams(
            **given,
            stop=tuple(self.stop_strings[1]),
            stop_token_ids=tuple(self.stop_token_ids or ()),
            logit_bias=tuple((int(token), bias) for token, bias in (self.logit_bias or {}).items()),
            max_tokens=max_tokens,
            logprobs=logprobs,
            structured_outputs=structure[1] if structure else None,
            service=self.service_level(),
            cache=self.cache is not False,
            cache_salt=self.cache_salt,
        )


class CompletionRequest(SamplingFields):
    """POST /v1/completions. `prompt` is a list of texts, or of arrays of token ids, by now."""

    unsupported: ClassVar[Harmless] = UNSUPPORTED_COMPLETION

    prompt: SkipValidation[list[Any]]
    max_tokens: Annotated[int, Field(ge=0, le=INT32_MAX), WHOLE] | None = COMPLETION_DEFAULT_MAX_TOKENS
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS), WHOLE] | None = None
    add_special_tokens: bool = True
    echo: bool | None = None

    def params(self, defaults: Mapping[str, float], structure: Structure | None) -> SamplingParams:
        """Make them. Where only the prompt is wanted the engine gives a token nevertheless, which nobody is sent."""
        limit = None if self.max_tokens is None else max(1, self.max_tokens)
        params = self.sampling_params(defaults, structure, max_tokens=limit, logprobs=self.logprobs)
        if not self.echo or self.logprobs is None:
            return params
        return replace(params, prompt_logprobs=max(self.logprobs, params.prompt_logprobs or 0))

    @property
    def choices_name(self) -> str:
        """The field that asks for many choices."""
        return "prompt" if self.choices_per_prompt == 1 else "n"


class ChatCompletionRequest(SamplingFields, ToolFields):
    """POST /v1/chat/completions."""

    unsupported: ClassVar[Harmless] = UNSUPPORTED_CHAT

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_tokens: TokenLimit | None = None
    max_completion_tokens: TokenLimit | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS), WHOLE] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: Effort | None = None

    def check(self) -> None:
        super().check()
        self.tool_use.check()
        check_template_kwargs(self.chat_template_kwargs)
        if self.top_logprobs and not self.logprobs:
            raise RequestError("top_logprobs needs logprobs: true", param="top_logprobs", code="invalid_value")

    def task(self, defaults: Mapping[str, float], thinks: bool) -> ChatTask:
        """Return what is to be answered.

        defaults: of sampling fields that it leaves out. thinks: whether the template lets the model think.

        Raises RequestError.
        """
        variables = thinking(wants_thoughts(self.reasoning_effort), thinks, "reasoning_effort")
        tools = self.tool_use
        structure = structure_with_calls(self.structure(), tools)
        return ChatTask(
            messages=[message.for_template() for message in self.messages],
            num_characters=sum(len(message.content or "") for message in self.messages),
            params=self.sampling_params(defaults, structure, max_tokens=self.token_limit, logprobs=self.num_logprobs),
            structured_by=structure[0] if structure else None,
            tools=tools,
            variables=variables | (self.chat_template_kwargs or {}),
            choices=self.choices_per_prompt,
            names=Names("messages", self.limit_name),
        )

    @property
    def token_limit(self) -> int | None:
        """`max_completion_tokens` is the newer name and wins."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens

    @property
    def limit_name(self) -> str:
        return "max_completion_tokens" if self.max_completion_tokens is not None else "max_tokens"

    @property
    def num_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None
