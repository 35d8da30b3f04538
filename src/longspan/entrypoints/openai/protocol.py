"""Requests as clients send them: OpenAI's fields, vLLM's sampling extras, service levels, and what is refused by name.

A field that would change the answer and is not served is refused; any other unknown field is let through.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator
from pydantic_core import PydanticCustomError

from longspan.errors import RequestError
from longspan.sampling_params import MAX_LOGPROBS, SamplingParams
from longspan.service_level import ServiceLevel

MAX_CHOICES = 128
INT32_MAX = 2**31 - 1
COMPLETION_DEFAULT_MAX_TOKENS = 16  # OpenAI's

# Field -> the values that ask for nothing special. Anything else is refused.
Harmless = Mapping[str, tuple[object, ...]]
UNSUPPORTED: dict[str, tuple[object, ...]] = {
    "allowed_token_ids": (None, []),
    "bad_words": (None, []),
    "guided_choice": (None,),
    "guided_grammar": (None,),
    "guided_json": (None,),
    "guided_regex": (None,),
    "length_penalty": (None, 1),
    "logit_bias": (None, {}),
    "logits_processors": (None, []),
    "prompt_embeds": (None,),
    "prompt_logprobs": (None,),
    "response_format": (None, {"type": "text"}),
    "skip_special_tokens": (None, True),
    "structured_outputs": (None,),
    "truncate_prompt_tokens": (None,),
    "use_beam_search": (None, False),
}
UNSUPPORTED_COMPLETION: Harmless = {
    **UNSUPPORTED,
    "best_of": (None, 1),
    "echo": (None, False),
    "suffix": (None, ""),
}
UNSUPPORTED_CHAT: Harmless = {
    **UNSUPPORTED,
    "audio": (None,),
    "chat_template": (None,),
    "continue_final_message": (None, False),
    "echo": (None, False),
    "function_call": (None, "none"),
    "functions": (None, []),
    "modalities": (None, ["text"]),
    "prediction": (None,),
    "reasoning_effort": (None, "none"),
    "store": (None, False),
    "verbosity": (None, "medium"),
    "web_search_options": (None,),
}
UNSUPPORTED_MESSAGE: Harmless = {
    "audio": (None,),
    "function_call": (None,),
    "refusal": (None,),
    "tool_calls": (None, []),
}
Milliseconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
TokenLimit = Annotated[int, Field(ge=1, le=INT32_MAX)]
StopStrings = Annotated[
    list[str], Field(max_length=128), BeforeValidator(lambda stop: [stop] if isinstance(stop, str) else stop)
]


class StreamOptions(BaseModel):
    include_usage: bool = False
    continuous_usage_stats: bool = False  # vLLM's: usage so far in every chunk


class SamplingFields(BaseModel):
    """What both endpoints share. None means the field's default, as for OpenAI."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())

    model: str | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: Annotated[int, Field(ge=-1, le=INT32_MAX)] | None = None
    min_p: float | None = None
    seed: int | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    stop: StopStrings | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    min_tokens: int | None = None
    ttft_slo_ms: Milliseconds | None = None
    tpot_slo_ms: Milliseconds | None = None
    priority: Annotated[int, Field(ge=-INT32_MAX, le=INT32_MAX)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @property
    def choices_per_prompt(self) -> int:
        return self.n or 1

    @property
    def usage_options(self) -> StreamOptions:
        return self.stream_options or StreamOptions()

    def check(self, unsupported: Harmless) -> None:
        """Raises RequestError for a field that is not served, or that does not go with another."""
        extra = self.model_extra or {}
        refuse_unsupported(extra, unsupported)
        if self.stream_options is not None and not self.stream:
            raise RequestError("stream_options needs stream: true", param="stream_options")
        # Load generators send min_tokens with ignore_eos; then it holds by itself.
        if self.min_tokens and (not self.ignore_eos or self.stop or self.stop_token_ids):
            raise RequestError(
                "min_tokens is supported only with ignore_eos: true and no stop or stop_token_ids",
                param="min_tokens",
            )

    def service_level(self) -> ServiceLevel:
        """What the request asks of the server's timeliness; the server's defaults where it says nothing."""
        return ServiceLevel(
            ttft_s=None if self.ttft_slo_ms is None else self.ttft_slo_ms / 1000,
            tpot_s=None if self.tpot_slo_ms is None else self.tpot_slo_ms / 1000,
            priority=self.priority or 0,
        )

    def sampling_params(self, *, max_tokens: int | None, logprobs: int | None) -> SamplingParams:
        """Raises RequestError for a value out of its range."""
        given: dict[str, Any] = {
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


def parse_prompts(prompt: object) -> list[str] | list[list[int]]:
    """A text, some texts, token ids, or some lists of token ids; always a list of prompts afterwards."""
    if isinstance(prompt, str):
        return [prompt]
    if isinstance(prompt, list) and prompt:
        kinds = set(map(type, prompt))
        if kinds == {str}:
            return prompt
        if kinds == {int}:
            return [prompt]
        if kinds == {list} and all(set(map(type, tokens)) <= {int} for tokens in prompt):
            return prompt
    raise PydanticCustomError(
        "prompt", "must be a text, texts, token ids, or lists of token ids; and not empty"
    )


class CompletionRequest(SamplingFields):
    """POST /v1/completions."""

    prompt: Annotated[
        list[str] | list[list[int]],
        PlainValidator(parse_prompts, json_schema_input_type=str | list[str] | list[int] | list[list[int]]),
    ]
    max_tokens: TokenLimit | None = COMPLETION_DEFAULT_MAX_TOKENS
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    add_special_tokens: bool = True


def join_text_parts(content: object) -> object:
    """Content parts become one text, joined by newlines as in vLLM; parts other than text are refused."""
    if not isinstance(content, list):
        return content
    texts = []
    for number, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        if kind != "text":
            raise PydanticCustomError(
                "content_part",
                "part {number} is of type {kind}, but only parts of type 'text' are supported",
                {"number": number, "kind": repr(kind)},
            )
        if not isinstance(part.get("text"), str):
            raise PydanticCustomError("content_part", "part {number} has no text", {"number": number})
        texts.append(part["text"])
    return "\n".join(texts)


class ChatMessage(BaseModel):
    model_config = ConfigDict(extra="allow")

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, BeforeValidator(join_text_parts)]
    name: str | None = None

    def for_template(self) -> dict[str, Any]:
        """Templates know no developer: OpenAI's newer name of system."""
        message = {"role": "system" if self.role == "developer" else self.role, "content": self.content}
        return message if self.name is None else message | {"name": self.name}


class ChatCompletionRequest(SamplingFields):
    """POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_tokens: TokenLimit | None = None
    max_completion_tokens: TokenLimit | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    chat_template_kwargs: dict[str, Any] | None = None

    def check(self, unsupported: Harmless) -> None:
        super().check(unsupported)
        if self.tools and self.tool_choice != "none":
            raise RequestError(
                "tools are not supported; leave them out, or set tool_choice: 'none'", param="tools"
            )
        if self.tool_choice not in (None, "none", "auto"):
            raise RequestError("tool_choice is not supported", param="tool_choice")
        if self.top_logprobs and not self.logprobs:
            raise RequestError("top_logprobs needs logprobs: true", param="top_logprobs")
        for number, message in enumerate(self.messages):
            refuse_unsupported(message.model_extra or {}, UNSUPPORTED_MESSAGE, f"messages[{number}].")

    @property
    def token_limit(self) -> int | None:
        """`max_completion_tokens` is the newer name and wins."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens

    @property
    def num_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None


def refuse_unsupported(extra: Mapping[str, object], unsupported: Harmless, prefix: str = "") -> None:
    for name, value in extra.items():
        if name in unsupported and value not in unsupported[name]:
            raise RequestError(f"{prefix}{name} is not supported", param=f"{prefix}{name}")
