"""Requests of Anthropic's Messages API: its own fields, and those that chats have besides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SkipValidation
from pydantic_core import PydanticCustomError

from longspan.entrypoints.anthropic import message_blocks, schema
from longspan.entrypoints.openai.bounds import MAX_SCHEMA_DEPTH, MAX_STOPS, Bounds
from longspan.entrypoints.openai.chat_task import ChatTask, Structure, both_structures, structure_with_calls, thinking
from longspan.entrypoints.openai.decoding import STOPS_BYTES, STRUCTURE_BYTES, within
from longspan.entrypoints.openai.json_values import missing
from longspan.entrypoints.openai.messages import ChatMessage
from longspan.entrypoints.openai.protocol import SamplingFields, StopString, TokenLimit
from longspan.entrypoints.openai.quoting import quoted
from longspan.entrypoints.openai.request_fields import Decode, Names, RequestFields
from longspan.entrypoints.openai.structure import schema_structure
from longspan.entrypoints.openai.tool_fields import MAX_TOOLS, NAME_PATTERN
from longspan.entrypoints.openai.tool_use import NamedTool, ToolUse, check_template_kwargs
from longspan.entrypoints.openai.unsupported import UNSUPPORTED, Harmless
from longspan.errors import RequestError

_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


def _custom(value: object) -> object:
    if value not in (None, "custom"):
        said = f"tools of type {quoted(value)} are not supported; custom ones are"
        raise PydanticCustomError("unsupported_tool", "{said}", {"said": said})
    return value


class Tool(BaseModel):
    """A tool of the client's own. Where it is demanded its calls keep to the schema anyway, whatever `strict` says."""

    model_config = ConfigDict(strict=True)

    type: Annotated[Literal["custom"] | None, BeforeValidator(_custom)] = None
    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    description: str | None = None
    input_schema: dict[str, Any]
    strict: bool | None = None

    def for_template(self) -> dict[str, Any]:
        """Return it as chat templates read it."""
        told = {} if self.description is None else {"description": self.description}
        return {"type": "function", "function": {"name": self.name, **told, "parameters": self.input_schema}}


class ToolChoice(BaseModel):
    model_config = ConfigDict(strict=True)

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(BaseModel):
    """`budget_tokens` is not kept to: `max_tokens` bounds what is thought and said together."""

    model_config = ConfigDict(strict=True)

    type: Literal["enabled", "adaptive", "disabled"]
    budget_tokens: TokenLimit | None = None


class JSONSchemaOutput(BaseModel):
    model_config = ConfigDict(strict=True)

    type: Literal["json_schema"]
    schema_: Annotated[dict[str, Any], Field(alias="schema")]


class OutputConfig(BaseModel):
    model_config = ConfigDict(strict=True)

    format: JSONSchemaOutput | None = None
    effort: Literal["high"] | None = None  # Anthropic's default; nothing else is served


class ConversationFields(BaseModel):
    """What both endpoints read: a conversation, and what the model is told with it."""

    messages: SkipValidation[list[ChatMessage]]
    system: str | None = None
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    @property
    def tool_use(self) -> ToolUse:
        """Return what is said of tools."""
        tools, choice = [tool.for_template() for tool in self.tools or ()], self.tool_choice
        if choice is None:
            return ToolUse(tools)
        named = NamedTool(choice.name or "") if choice.type == "tool" else None
        return ToolUse(tools, named or _CHOICES.get(choice.type), not choice.disable_parallel_tool_use)

    @property
    def conversation(self) -> list[dict[str, Any]]:
        """Return the messages as chat templates read them."""
        begin = [] if self.system is None else [{"role": "system", "content": self.system}]
        return begin + [message.for_template() for message in self.messages]

    @property
    def num_characters(self) -> int:
        return len(self.system or "") + sum(len(message.content or "") for message in self.messages)

    def variables(self, thinks: bool) -> dict[str, Any]:
        """Return those of the template. thinks: whether it lets the model think. Raises RequestError."""
        kind = None if self.thinking is None else self.thinking.type
        wanted = {"enabled": True, "disabled": False}.get(kind or "")
        return thinking(wanted, thinks, "thinking") | (self.chat_template_kwargs or {})

    def check_conversation(self) -> None:
        """Raises RequestError for a field that does not go with another."""
        if self.messages[-1].role == "assistant":
            raise RequestError(
                "messages: the last one is the assistant's, but to go on with its answer is not supported; end with "
                "the user's", param="messages", code="unsupported_value",
            )  # fmt: skip
        if self.tool_choice is not None and self.tool_choice.type == "tool" and self.tool_choice.name is None:
            raise missing("tool_choice.name")
        self.tool_use.check()
        check_template_kwargs(self.chat_template_kwargs)


_DECODERS: Mapping[str, Decode] = {
    "messages": message_blocks.messages,
    "system": message_blocks.system,
    "stop_sequences": within(STOPS_BYTES),
    "output_config": within(STRUCTURE_BYTES, MAX_SCHEMA_DEPTH),
}
_UNSUPPORTED: Harmless = {
    "container": (None,),
    "context_management": (None,),
    "inference_geo": (None,),
    "mcp_servers": (None, []),
    "output_format": (None,),
    "service_tier": (None, "auto", "standard_only"),
    "speed": (None, "standard"),
}


class MessagesRequest(SamplingFields, ConversationFields):
    """POST /v1/messages."""

    unsupported: ClassVar[Harmless] = {
        **UNSUPPORTED,
        **_UNSUPPORTED,
        "n": (None, 1),
        "prompt_logprobs": (None,),
        "response_format": (None,),
        "stop": (None, []),
        "stream_options": (None,),
    }
    decoders: ClassVar[Mapping[str, Decode]] = _DECODERS

    max_tokens: TokenLimit
    stop_sequences: Annotated[list[StopString], Field(max_length=MAX_STOPS)] | None = None

    @property
    def stop_strings(self) -> tuple[str, list[str]]:
        return "stop_sequences", self.stop_sequences or []

    def check(self) -> None:
        super().check()
        self.check_conversation()

    def structure(self) -> Structure | None:
        found, output = super().structure(), self.output_config
        if output is None or output.format is None:
            return found
        return both_structures(found, schema_structure("output_config", output.format.schema_))

    def task(self, defaults: Mapping[str, float], thinks: bool) -> ChatTask:
        """Return what is to be answered.

        defaults: of sampling fields that the request leaves out. thinks: whether the template lets the model think.

        Raises RequestError.
        """
        tools = self.tool_use
        structure = structure_with_calls(self.structure(), tools)
        return ChatTask(
            messages=self.conversation,
            num_characters=self.num_characters,
            params=self.sampling_params(defaults, structure, max_tokens=self.max_tokens, logprobs=None),
            structured_by=structure[0] if structure else None,
            tools=tools,
            variables=self.variables(thinks),
            names=Names("messages"),
        )

    @classmethod
    def describe(cls, properties: dict[str, Any], bounds: Bounds) -> None:
        schema.describe(properties, bounds)


class CountTokensRequest(RequestFields, ConversationFields):
    """POST /v1/messages/count_tokens: a conversation that is not answered."""

    unsupported: ClassVar[Harmless] = _UNSUPPORTED
    decoders: ClassVar[Mapping[str, Decode]] = _DECODERS

    def check(self) -> None:
        self.check_conversation()

    @classmethod
    def describe(cls, properties: dict[str, Any], bounds: Bounds) -> None:
        schema.describe(properties, bounds)
