"""Which tools an answer may call and whether it must, however its request says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from longspan.entrypoints.openai.quoting import quoted
from longspan.errors import RequestError
from longspan.structured_outputs import StructuredOutputs


class NamedTool(str):
    """The one that has to be called."""


@dataclass(frozen=True, slots=True)
class ToolUse:
    """What one request says of tools.

    tools: as chat templates read them: {"type": "function", "function": {"name", "description", "parameters"}}.
    choice: "none": the model is not told of them; "required": it calls some; a NamedTool: this one; else as it likes.
    parallel: whether it may call several at once.
    """

    tools: Sequence[dict[str, Any]] = ()
    choice: str | None = None
    parallel: bool = True

    def check(self) -> None:
        """Raises RequestError where the choice does not go with the tools."""
        names = {tool["function"]["name"] for tool in self.tools}
        if isinstance(self.choice, NamedTool) and self.choice not in names:
            raise RequestError(
                f"tool_choice names {quoted(str(self.choice))}, which is none of the tools", param="tool_choice",
                code="invalid_value",
            )  # fmt: skip
        if self.demands_calls and not names:
            raise RequestError(f"tool_choice '{self.choice}' needs tools", param="tool_choice", code="invalid_value")

    @property
    def offered(self) -> Sequence[dict[str, Any]]:
        """The tools that the model is told of."""
        return () if self.choice == "none" else self.tools

    @property
    def demands_calls(self) -> bool:
        return self.choice == "required" or isinstance(self.choice, NamedTool)

    @property
    def named(self) -> str | None:
        """The one that must be called."""
        return str(self.choice) if isinstance(self.choice, NamedTool) else None

    def call_grammar(self) -> StructuredOutputs | None:
        """Return what an answer that has to call a tool must look like: the arguments of the named one, or a list of
        calls. Raises RequestError."""
        if not self.demands_calls:
            return None
        by_name = {tool["function"]["name"]: tool["function"].get("parameters") or _NO_ARGUMENTS for tool in self.tools}
        if self.named is not None:
            return StructuredOutputs(json=_text(by_name[self.named]))
        calls = [
            {"type": "object", "additionalProperties": False, "required": ["name", "arguments"],
             "properties": {"name": {"const": name}, "arguments": {"$ref": f"#/$defs/{number}"}}}
            for number, name in enumerate(by_name)
        ]  # fmt: skip
        most = {} if self.parallel else {"maxItems": 1}
        definitions = {
            str(number): _moved(given, f"#/$defs/{number}") for number, given in enumerate(by_name.values())
        }
        schema = {"type": "array", "minItems": 1, **most, "items": {"anyOf": calls}, "$defs": definitions}
        return StructuredOutputs(json=_text(schema))


def check_template_kwargs(kwargs: Mapping[str, Any] | None) -> None:
    """Raises RequestError where a request sets tools for the chat template beside those that are looked at."""
    if "tools" in (kwargs or {}):
        raise RequestError(
            "tools cannot be set for a chat template", param="chat_template_kwargs", code="unsupported_parameter"
        )


_NO_ARGUMENTS: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}


def _moved(schema: Any, to: str) -> Any:
    """Return a schema whose references are right where it stands."""
    if isinstance(schema, list):
        return [_moved(one, to) for one in schema]
    if not isinstance(schema, dict):
        return schema
    moved = {name: _moved(value, to) for name, value in schema.items()}
    reference = schema.get("$ref")
    if isinstance(reference, str) and reference.startswith("#"):
        moved["$ref"] = to + reference[1:]
    return moved


def _text(schema: Any) -> str:
    return msgspec.json.encode(schema).decode()
