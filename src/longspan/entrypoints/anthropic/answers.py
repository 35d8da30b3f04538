"""Answers of Anthropic's Messages API as clients get them, whole and in streams: msgspec structs."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Raw, Struct

from longspan.entrypoints.openai.answers import ProgressEvent

StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]


class TextBlock(Struct, tag="text"):
    text: str
    citations: None = None


class ThinkingBlock(Struct, tag="thinking"):
    """`signature` is empty: what the model thought may be given back as it is."""

    thinking: str
    signature: str = ""


class ToolUseBlock(Struct, tag="tool_use"):
    """`input` is the object that the model has written; {"INVALID_JSON": its text} where it is none."""

    id: str
    name: str
    input: Raw | dict[str, Any]


ContentBlock = TextBlock | ThinkingBlock | ToolUseBlock


class MessageUsage(Struct):
    """`input_tokens` are those that had to be computed; the ones that were found are `cache_read_input_tokens`."""

    input_tokens: int
    output_tokens: int
    cache_read_input_tokens: int = 0
    cache_creation_input_tokens: int = 0


class Message(Struct, tag="message"):
    id: str
    model: str
    content: list[ContentBlock]
    usage: MessageUsage
    stop_reason: StopReason | None = None
    stop_sequence: str | None = None
    role: Literal["assistant"] = "assistant"


class TokenCount(Struct):
    input_tokens: int


class MessageStart(Struct, tag="message_start"):
    message: Message


class ContentBlockStart(Struct, tag="content_block_start"):
    index: int
    content_block: ContentBlock


class TextDelta(Struct, tag="text_delta"):
    text: str


class ThinkingDelta(Struct, tag="thinking_delta"):
    thinking: str


class InputJSONDelta(Struct, tag="input_json_delta"):
    partial_json: str


class ContentBlockDelta(Struct, tag="content_block_delta"):
    index: int
    delta: TextDelta | ThinkingDelta | InputJSONDelta


class ContentBlockStop(Struct, tag="content_block_stop"):
    index: int


class EndOfMessage(Struct):
    stop_reason: StopReason
    stop_sequence: str | None


class MessageDelta(Struct, tag="message_delta"):
    delta: EndOfMessage
    usage: MessageUsage


class MessageStop(Struct, tag="message_stop"):
    pass


class Ping(Struct, tag="ping"):
    pass


StreamEvent = (
    MessageStart | ContentBlockStart | ContentBlockDelta | ContentBlockStop | MessageDelta | MessageStop | Ping
    | ProgressEvent
)  # fmt: skip
"""What is in a stream, but for errors."""
