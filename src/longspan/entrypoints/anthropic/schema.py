"""What /openapi.json says of Anthropic's messages and errors."""

from __future__ import annotations

from typing import Any

from longspan.entrypoints.openai.bounds import Bounds

Schema = dict[str, Any]

_TEXT: Schema = {"type": "object", "required": ["type", "text"],
                 "properties": {"type": {"const": "text"}, "text": {"type": "string"}}}  # fmt: skip
_TEXTS: Schema = {"anyOf": [{"type": "string"}, {"type": "array", "items": _TEXT}]}
_RESULT: Schema = {
    "type": "object", "required": ["type", "tool_use_id"],
    "properties": {"type": {"const": "tool_result"}, "tool_use_id": {"type": "string", "maxLength": 64},
                   "content": _TEXTS},
}  # fmt: skip
_THINKING: Schema = {"type": "object", "required": ["type", "thinking"],
                     "properties": {"type": {"const": "thinking"}, "thinking": {"type": "string"}}}  # fmt: skip
_TOOL_USE: Schema = {
    "type": "object", "required": ["type", "id", "name", "input"],
    "properties": {"type": {"const": "tool_use"}, "id": {"type": "string", "maxLength": 64},
                   "name": {"type": "string", "maxLength": 64}, "input": {"type": "object", "maxProperties": 16}},
}  # fmt: skip
ERROR: Schema = {
    "type": "object",
    "required": ["type", "error", "request_id"],
    "properties": {
        "type": {"const": "error"},
        "error": {
            "type": "object",
            "required": ["type", "message"],
            "properties": {"type": {"type": "string"}, "message": {"type": "string"}},
        },
        "request_id": {"type": "string"},
    },
}


def describe(properties: Schema, bounds: Bounds) -> None:
    """Say in a request's properties what a conversation is, but that its last message is the user's."""
    properties["messages"] = {
        "type": "array", "minItems": 1, "maxItems": bounds.prompt_tokens,
        "items": {"anyOf": [_message("user", [_TEXT, _RESULT]), _message("assistant", [_TEXT, _THINKING, _TOOL_USE])]},
    }  # fmt: skip
    properties["system"] = {"anyOf": [*_TEXTS["anyOf"], {"type": "null"}]}
    named = {"type": "object", "required": ["type", "name"],
             "properties": {"type": {"const": "tool"}, "name": {"type": "string"}}}  # fmt: skip
    free = {"type": "object", "required": ["type"], "properties": {
        "type": {"enum": ["auto", "any", "none"]}, "disable_parallel_tool_use": {"type": ["boolean", "null"]}}}
    properties["tool_choice"] = {"anyOf": [{"type": "null"}, free, named]}


def _message(role: str, blocks: list[Schema]) -> Schema:
    content = {"anyOf": [{"type": "string"}, {"type": "array", "minItems": 1, "items": {"anyOf": blocks}}]}
    properties = {"role": {"const": role}, "content": content}
    return {"type": "object", "required": ["role", "content"], "properties": properties}
