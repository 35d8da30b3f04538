"""What /openapi.json says of `input` and tools of responses."""

from __future__ import annotations

from typing import Any

from longspan.entrypoints.openai.bounds import Bounds
from longspan.entrypoints.openai.tool_fields import CHOICES

Schema = dict[str, Any]


def _record(required: str, **properties: Schema) -> Schema:
    return {"type": "object", "required": required.split(), "properties": properties}


_NAME: Schema = {"type": "string", "maxLength": 64}


def _content(*kinds: str) -> Schema:
    part = _record("type text", type={"enum": list(kinds)}, text={"type": "string"})
    return {"anyOf": [{"type": "string"}, {"type": "array", "items": part}]}


_ITEMS: list[Schema] = [
    _record("role content", type={"const": "message"}, role={"enum": ["user", "system", "developer"]},
            content=_content("input_text")),
    _record("role content", type={"const": "message"}, role={"const": "assistant"}, content=_content("output_text")),
    _record("type call_id name arguments", type={"const": "function_call"}, call_id=_NAME, name=_NAME,
            arguments={"type": "string"}),
    _record("type call_id output", type={"const": "function_call_output"}, call_id=_NAME,
            output=_content("input_text")),
    _record("type", type={"const": "reasoning"}, content=_content("reasoning_text")),
]  # fmt: skip


def describe(properties: Schema, bounds: Bounds) -> None:
    """Say in a request's properties what a conversation is."""
    for item in _ITEMS:
        item["properties"]["id"] = {"type": ["string", "null"], "maxLength": 64}
    items = {"type": "array", "minItems": 1, "maxItems": bounds.prompt_tokens, "items": {"anyOf": _ITEMS}}
    properties["input"] = {"anyOf": [{"type": "string", "maxLength": bounds.prompt_chars}, items]}
    properties["instructions"] = {"anyOf": [{"type": "string"}, {"type": "null"}]}
    named = _record("type name", type={"const": "function"}, name={"type": "string"})
    properties["tool_choice"] = {"anyOf": [{"enum": [None, *CHOICES]}, named]}
