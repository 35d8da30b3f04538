"""Answers as clients get them: msgspec structs, because a chunk is encoded for every token (0.3 us)."""

from __future__ import annotations

from typing import Literal

from msgspec import UNSET, Struct, UnsetType

from longspan.core.events import FinishReason
from longspan.core.progress import Phase

ChatFinishReason = Literal["stop", "length", "abort", "tool_calls"]


class PromptTokensDetails(Struct):
    cached_tokens: int


class Usage(Struct):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails | UnsetType = UNSET


class CompletionLogprobs(Struct):
    """Four lists, one entry for each token; `text_offset` counts characters from the start of the answer. Of a prompt
    that is part of it the first token has no log-probabilities."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class PromptLogprob(Struct):
    logprob: float
    rank: int
    decoded_token: str


PromptLogprobs = list[dict[str, PromptLogprob] | None]
"""vLLM's: for each of a prompt's tokens the best ones and itself, by token id; None for the first."""


class CompletionChoice(Struct):
    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: FinishReason | None = None
    stop_reason: str | int | UnsetType | None = UNSET  # vLLM's extra: the stop string or token id
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET


class CompletionAnswer(Struct):
    """A whole completion, or one chunk of a streamed one: they look alike.

    system_fingerprint: changes with whatever may change what a seed gives.
    """

    id: str
    created: int
    model: str
    choices: list[CompletionChoice]
    system_fingerprint: str
    usage: Usage | UnsetType | None = UNSET
    object: Literal["text_completion"] = "text_completion"


class TopLogprob(Struct):
    token: str
    logprob: float
    bytes: list[int]


class ChatLogprob(Struct):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(Struct):
    content: list[ChatLogprob]
    refusal: None = None


class CalledFunction(Struct):
    """`arguments` is JSON, as the model wrote it."""

    name: str
    arguments: str


class ToolCall(Struct):
    id: str
    function: CalledFunction
    type: Literal["function"] = "function"


class AnswerMessage(Struct):
    """`reasoning_content` is what the model thought before it answered."""

    content: str | None
    role: Literal["assistant"] = "assistant"
    refusal: None = None
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCall] | UnsetType = UNSET


class ChatChoice(Struct):
    index: int
    message: AnswerMessage
    finish_reason: ChatFinishReason | None
    logprobs: ChatLogprobs | None = None
    stop_reason: str | int | UnsetType | None = UNSET


class ChatAnswer(Struct):
    id: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    system_fingerprint: str
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET
    object: Literal["chat.completion"] = "chat.completion"


class CalledFunctionDelta(Struct):
    arguments: str
    name: str | UnsetType = UNSET


class ToolCallDelta(Struct):
    """The first one of a call has its id and name; those that follow have more of its arguments."""

    index: int
    function: CalledFunctionDelta
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET


class Delta(Struct):
    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCallDelta] | UnsetType = UNSET


class ChatChunkChoice(Struct):
    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: ChatFinishReason | None = None
    stop_reason: str | int | UnsetType | None = UNSET


class ChoiceProgress(Struct):
    """How far one choice is, in a stream that asks for it. Seconds count from its arrival; `ttft_p50_s` and
    `ttft_p95_s` are those to its first token, for half of such requests and for 95 of 100; None: nobody can say."""

    index: int
    phase: Phase
    queue_position: int | None
    prompt_tokens: int
    computed_tokens: int
    cached_tokens: int
    elapsed_s: float
    ttft_p50_s: float | None
    ttft_p95_s: float | None


class ProgressEvent(Struct, tag="longspan.progress"):
    """How far the request is, in streams whose events have types."""

    longspan_progress: list[ChoiceProgress]


class CompletionChunk(CompletionAnswer):
    """With `longspan_progress` it has no choices."""

    longspan_progress: list[ChoiceProgress] | UnsetType = UNSET


class ChatChunk(Struct):
    id: str
    created: int
    model: str
    choices: list[ChatChunkChoice]
    system_fingerprint: str
    usage: Usage | UnsetType | None = UNSET
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    longspan_progress: list[ChoiceProgress] | UnsetType = UNSET


class Model(Struct):
    """`root` and `max_model_len` are vLLM's extras, which load generators read."""

    id: str
    created: int
    root: str
    max_model_len: int
    object: Literal["model"] = "model"
    owned_by: str = "longspan"
    parent: None = None


class ModelList(Struct):
    data: list[Model]
    object: Literal["list"] = "list"
