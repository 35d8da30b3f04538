"""Messages of a chat: measured before they are built."""

from __future__ import annotations

from typing import Any

from msgspec import UNSET, Raw, Struct, UnsetType
from pydantic import ValidationError

from longspan.entrypoints.openai.bounds import MAX_NODES, MAX_SCALAR_BYTES, Bounds
from longspan.entrypoints.openai.json_counts import Counting, count_one
from longspan.entrypoints.openai.json_values import num_nodes, scalar, too_large, typed
from longspan.entrypoints.openai.messages import CalledTool, ChatMessage
from longspan.entrypoints.openai.problems import request_error
from longspan.entrypoints.openai.text_decoding import content, too_long, too_many
from longspan.entrypoints.openai.unsupported import refuse_unsupported
from longspan.errors import RequestError


def messages(bounds: Bounds, raw: bytes, place: str) -> object:
    """Return ChatMessages. Raises RequestError."""
    if not raw.startswith(b"["):
        return scalar(raw[:MAX_SCALAR_BYTES] if raw.startswith(b'"') else b"{}", place)  # of the wrong type
    with Counting(bounds.prompt_tokens, too_many(bounds, place)):
        cut = typed(raw, list[_Message], place)
    chars, nodes, found = 0, 0, []
    for number, message in enumerate(cut):
        fields: dict[str, Any] = {}
        where = f"{place}[{number}]"
        for name in message.__struct_fields__:
            value: Raw | UnsetType = getattr(message, name)
            if value is UNSET:
                continue
            given = bytes(value)
            if name in ChatMessage.unsupported:
                refuse_unsupported(f"{where}.{name}", given, ChatMessage.unsupported[name])
            elif name in ("content", "refusal", "reasoning_content"):
                text = fields[name] = content(bounds, given, f"{where}.{name}")
                chars += len(text) if isinstance(text, str) else 0
            elif name == "tool_calls":
                nodes += num_nodes(given)
                if nodes > MAX_NODES:
                    raise too_large(f"{where}.{name}", "the tool calls of all messages hold more than can be read")
                chars += len(given) // 12
                fields[name] = typed(given, list[CalledTool] | None, f"{where}.{name}")
            else:
                fields[name] = scalar(given, f"{where}.{name}")
        if chars > bounds.prompt_chars:
            raise too_long(place, f"more than {chars} characters", bounds)
        found.append(_validated(fields, where))
    return found


def _validated(fields: dict[str, Any], place: str) -> ChatMessage:
    try:
        message = ChatMessage.model_validate(fields)
        message.check(place)
        return message
    except ValidationError as error:
        found = request_error(error)
        where = f"{place}.{found.param}" if found.param else place
        said = str(found).replace(f"{found.param}: ", f"{where}: ", 1)
        raise RequestError(said, param=where, code=found.code) from None


class _Message(Struct, gc=False):
    role: Raw | UnsetType = UNSET
    content: Raw | UnsetType = UNSET
    name: Raw | UnsetType = UNSET
    tool_calls: Raw | UnsetType = UNSET
    tool_call_id: Raw | UnsetType = UNSET
    refusal: Raw | UnsetType = UNSET
    reasoning_content: Raw | UnsetType = UNSET
    audio: Raw | UnsetType = UNSET
    function_call: Raw | UnsetType = UNSET

    def __post_init__(self) -> None:
        count_one()
