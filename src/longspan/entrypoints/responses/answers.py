"""Answers of OpenAI's Responses API as clients get them, and the events of their streams: msgspec structs."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct

from longspan.entrypoints.openai.answers import ProgressEvent
from longspan.entrypoints.responses.items import Item, OutputItem, OutputText, ReasoningText

ResponseStatus = Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]


class InputTokensDetails(Struct):
    cached_tokens: int
    cache_write_tokens: int = 0


class OutputTokensDetails(Struct):
    """`reasoning_tokens` are those up to where the model has thought last."""

    reasoning_tokens: int


class ResponseUsage(Struct):
    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class ResponseError(Struct):
    code: str
    message: str


class IncompleteDetails(Struct):
    reason: Literal["max_output_tokens"]


class ResponseObject(Struct, kw_only=True):
    """A response, at any time of its life. What was asked for is told again."""

    id: str
    created_at: int
    model: str
    status: ResponseStatus
    output: list[OutputItem] = []
    usage: ResponseUsage | None = None
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    completed_at: int | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    metadata: dict[str, str] = {}
    parallel_tool_calls: bool = True
    previous_response_id: str | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    tool_choice: str | dict[str, str] = "auto"
    tools: list[dict[str, Any]] = []
    text: dict[str, Any] = {}
    reasoning: dict[str, str | None] = {}
    background: bool = False
    store: bool = True
    truncation: Literal["disabled"] = "disabled"
    service_tier: Literal["default"] = "default"
    top_logprobs: int = 0
    object: Literal["response"] = "response"


class DeletedResponse(Struct):
    id: str
    object: Literal["response"] = "response"
    deleted: bool = True


class ItemList(Struct):
    data: list[Item]
    first_id: str | None
    last_id: str | None
    has_more: bool
    object: Literal["list"] = "list"


class _Event(Struct, kw_only=True):
    sequence_number: int = 0


class Created(_Event, tag="response.created"):
    response: ResponseObject


class InProgress(_Event, tag="response.in_progress"):
    response: ResponseObject


class Completed(_Event, tag="response.completed"):
    response: ResponseObject


class Incomplete(_Event, tag="response.incomplete"):
    response: ResponseObject


class Failed(_Event, tag="response.failed"):
    response: ResponseObject


class ItemAdded(_Event, tag="response.output_item.added"):
    output_index: int
    item: OutputItem


class ItemDone(_Event, tag="response.output_item.done"):
    output_index: int
    item: OutputItem


class _OfItem(_Event, kw_only=True):
    output_index: int
    item_id: str


class PartAdded(_OfItem, tag="response.content_part.added"):
    part: OutputText | ReasoningText
    content_index: int = 0


class PartDone(_OfItem, tag="response.content_part.done"):
    part: OutputText | ReasoningText
    content_index: int = 0


class TextDelta(_OfItem, tag="response.output_text.delta"):
    delta: str
    content_index: int = 0
    logprobs: list[Any] = []


class TextDone(_OfItem, tag="response.output_text.done"):
    text: str
    content_index: int = 0
    logprobs: list[Any] = []


class ReasoningDelta(_OfItem, tag="response.reasoning_text.delta"):
    delta: str
    content_index: int = 0


class ReasoningDone(_OfItem, tag="response.reasoning_text.done"):
    text: str
    content_index: int = 0


class ArgumentsDelta(_OfItem, tag="response.function_call_arguments.delta"):
    delta: str


class ArgumentsDone(_OfItem, tag="response.function_call_arguments.done"):
    name: str
    arguments: str


class StreamError(_Event, tag="error"):
    """It is followed by `response.failed`."""

    code: str | None
    message: str
    param: str | None


Event = (
    Created | InProgress | Completed | Incomplete | Failed | ItemAdded | ItemDone | PartAdded | PartDone | TextDelta
    | TextDone | ReasoningDelta | ReasoningDone | ArgumentsDelta | ArgumentsDone | StreamError
)  # fmt: skip
StreamEvent = Event | ProgressEvent
"""What is in a stream."""
