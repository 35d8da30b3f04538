"""Messages of a conversation, as clients send them and as chat templates read them."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Struct
from pydantic import BaseModel, ConfigDict, Field, SkipValidation, WithJsonSchema

from longspan.entrypoints.openai.bounds import MAX_NAME_CHARS
from longspan.entrypoints.openai.unsupported import UNSUPPORTED_MESSAGE, Harmless
from longspan.errors import RequestError

Name = Annotated[str, Field(max_length=MAX_NAME_CHARS)]
TOOL_CALLS_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["function"],
                "properties": {
                    "id": {"type": ["string", "null"]},
                    "type": {"type": "string"},
                    "function": {
                        "type": "object",
                        "required": ["name", "arguments"],
                        "properties": {"name": {"type": "string"}, "arguments": {"type": "string"}},
                    },
                },
            },
        },
        {"type": "null"},
    ]
}
CONTENT_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"type": "string"},
        {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["type", "text"],
                "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
            },
        },
    ]
}


class CalledFunction(Struct, gc=False):
    """`arguments` is JSON, or should be."""

    name: str
    arguments: str


class CalledTool(Struct, gc=False):
    """A call in an earlier answer."""

    function: CalledFunction
    id: str | None = None
    type: str = "function"


class ChatMessage(BaseModel):
    """One message. `content` is one text by now; an assistant's may be missing, or null."""

    model_config = ConfigDict(strict=True)
    unsupported: ClassVar[Harmless] = UNSUPPORTED_MESSAGE

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[str | None, WithJsonSchema(CONTENT_SCHEMA)] = None
    name: Name | None = None
    tool_calls: Annotated[SkipValidation[list[Any] | None], WithJsonSchema(TOOL_CALLS_SCHEMA)] = None
    tool_call_id: Name | None = None
    refusal: str | None = None
    reasoning_content: str | None = None

    def check(self, place: str) -> None:
        """Raises RequestError for a field that does not go with the role."""
        if self.role != "assistant" and self.content is None:
            said = "must be a text or a list of text parts, not null"
            missing = "content" not in self.model_fields_set
            raise RequestError(
                f"{place}.content: {'Field required' if missing else said}",
                param=f"{place}.content", code="missing_required_parameter" if missing else "invalid_type",
            )  # fmt: skip
        if self.role != "assistant" and self.tool_calls:
            raise RequestError(
                f"{place}.tool_calls: only the assistant calls tools", param=f"{place}.tool_calls", code="invalid_value"
            )

    def for_template(self) -> dict[str, Any]:
        """Return its fields: null content as an empty text, which every template can write; no other null fields.

        Templates know no developer: OpenAI's newer name of system.
        """
        message: dict[str, Any] = {"role": "system" if self.role == "developer" else self.role}
        message["content"] = self.content if self.content is not None else self.refusal or ""
        for name in ("name", "tool_call_id", "reasoning_content"):
            if (value := getattr(self, name)) is not None:
                message[name] = value
        if self.tool_calls:
            message["tool_calls"] = [
                {
                    "id": call.id,
                    "type": call.type,
                    "function": {"name": call.function.name, "arguments": _arguments(call.function.arguments)},
                }
                for call in self.tool_calls
            ]
        return message


def _arguments(text: str) -> object:
    """Templates write arguments as JSON, so they want the object, not its text."""
    try:
        arguments = msgspec.json.decode(text)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return text
    return arguments if isinstance(arguments, dict) else text
