"""The part of a chat request that is about tools: which there are, and whether the answer has to call some."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from longspan.entrypoints.openai.tool_use import NamedTool, ToolUse

MAX_TOOLS = 1024
NAME_PATTERN = "^[a-zA-Z0-9_.:-]{1,128}$"
CHOICES = ("none", "auto", "required")


class FunctionTool(BaseModel):
    """`strict` changes nothing: a call that is demanded keeps to the schema anyway."""

    model_config = ConfigDict(strict=True, extra="allow")

    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(BaseModel):
    model_config = ConfigDict(strict=True)

    type: Literal["function"]
    function: FunctionTool


def _choice(value: object) -> object:
    """A word, or {"type": "function", "function": {"name": ...}}, of which the name is left."""
    if value is None or value in CHOICES:
        return value
    if isinstance(value, dict) and value.get("type") == "function" and isinstance(value.get("function"), dict):
        name = value["function"].get("name")
        if isinstance(name, str):
            return NamedTool(name)
    raise PydanticCustomError(
        "unsupported_choice", 'it must be "none", "auto", "required", or name a function'
    )


class ToolFields(BaseModel):
    """Fields of a chat request."""

    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: Annotated[Any, BeforeValidator(_choice)] = None
    parallel_tool_calls: bool | None = None

    @property
    def tool_use(self) -> ToolUse:
        """Return what they say together."""
        tools = [tool.model_dump(exclude_unset=True) for tool in self.tools or ()]
        return ToolUse(tools, self.tool_choice, self.parallel_tool_calls is not False)
