"""Requests for responses: OpenAI's fields, and those that chats have besides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SkipValidation
from pydantic_core import PydanticCustomError

from longspan.entrypoints.openai.bounds import MAX_ENVELOPE_BYTES, MAX_NAME_CHARS, MAX_SCHEMA_DEPTH, Bounds
from longspan.entrypoints.openai.chat_task import (
    ChatTask,
    Effort,
    Structure,
    both_structures,
    structure_with_calls,
    thinking,
    wants_thoughts,
)
from longspan.entrypoints.openai.decoding import STRUCTURE_BYTES, within
from longspan.entrypoints.openai.json_values import missing
from longspan.entrypoints.openai.protocol import SamplingFields, TokenLimit
from longspan.entrypoints.openai.quoting import quoted
from longspan.entrypoints.openai.request_fields import Decode, Names
from longspan.entrypoints.openai.structure import json_object_structure, schema_structure
from longspan.entrypoints.openai.text_decoding import content
from longspan.entrypoints.openai.tool_fields import CHOICES, MAX_TOOLS, NAME_PATTERN
from longspan.entrypoints.openai.tool_use import NamedTool, ToolUse, check_template_kwargs
from longspan.entrypoints.openai.unsupported import UNSUPPORTED, Harmless
from longspan.entrypoints.responses import schema
from longspan.entrypoints.responses.input_items import input_items
from longspan.entrypoints.responses.items import Item, conversation
from longspan.errors import RequestError

MAX_METADATA = 16


def _function(value: object) -> object:
    if value != "function":
        said = f"tools of type {quoted(value)} are not supported; functions are"
        raise PydanticCustomError("unsupported_tool", "{said}", {"said": said})
    return value


class Tool(BaseModel):
    """`strict` changes nothing: a call that is demanded keeps to the schema anyway."""

    model_config = ConfigDict(strict=True)

    type: Annotated[Literal["function"], BeforeValidator(_function)]
    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    def for_template(self) -> dict[str, Any]:
        """Return it as chat templates read it."""
        told = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return {"type": "function", "function": {name: value for name, value in told.items() if value is not None}}


def _choice(value: object) -> object:
    """A word, or {"type": "function", "name": ...}, of which the name is left."""
    if value is None or value in CHOICES:
        return value
    if isinstance(value, dict) and value.get("type") == "function" and isinstance(value.get("name"), str):
        return NamedTool(value["name"])
    raise PydanticCustomError("unsupported_choice", 'it must be "none", "auto", "required", or name a function')


class TextFormat(BaseModel):
    """`strict` changes nothing: the schema is always kept to."""

    model_config = ConfigDict(strict=True)

    type: Literal["text", "json_object", "json_schema"]
    name: Annotated[str, Field(max_length=MAX_NAME_CHARS)] | None = None
    description: str | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: bool | None = None


class TextFields(BaseModel):
    model_config = ConfigDict(strict=True)

    format: TextFormat | None = None
    verbosity: Literal["medium"] | None = None  # OpenAI's default; nothing else is served


class ReasoningFields(BaseModel):
    """There are no summaries: what the model thought is given as it is, `auto` being content with that."""

    model_config = ConfigDict(strict=True)

    effort: Effort | None = None
    summary: Literal["auto"] | None = None


MetadataName = Annotated[str, Field(max_length=64)]
MetadataValue = Annotated[str, Field(max_length=512)]


class ResponsesRequest(SamplingFields):
    """POST /v1/responses. `input` is a list of items by now."""

    unsupported: ClassVar[Harmless] = {
        **UNSUPPORTED,
        "context_management": (None,),
        "conversation": (None,),
        "logprobs": (None, False),
        "max_completion_tokens": (None,),
        "max_tokens": (None,),
        "max_tool_calls": (None,),
        "messages": (None,),
        "n": (None, 1),
        "prompt": (None,),
        "prompt_logprobs": (None,),
        "response_format": (None,),
        "service_tier": (None, "auto", "default"),
        "stream_options": (None, {}, {"include_obfuscation": False}),
        "top_logprobs": (None, 0),
        "truncation": (None, "disabled"),
    }
    decoders: ClassVar[Mapping[str, Decode]] = {
        "input": input_items,
        "instructions": content,
        "metadata": within(MAX_ENVELOPE_BYTES),
        "text": within(STRUCTURE_BYTES, MAX_SCHEMA_DEPTH),
    }

    input: SkipValidation[list[Any]]
    instructions: str | None = None
    previous_response_id: Annotated[str, Field(max_length=MAX_NAME_CHARS)] | None = None
    max_output_tokens: TokenLimit | None = None
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: Annotated[Any, BeforeValidator(_choice)] = None
    parallel_tool_calls: bool | None = None
    text: TextFields | None = None
    reasoning: ReasoningFields | None = None
    include: list[Literal["reasoning.encrypted_content"]] | None = None  # it is given in plain text
    metadata: Annotated[dict[MetadataName, MetadataValue], Field(max_length=MAX_METADATA)] | None = None
    store: bool | None = None
    background: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    def check(self) -> None:
        super().check()
        self.tool_use.check()
        check_template_kwargs(self.chat_template_kwargs)
        if self.background and self.stream:
            raise RequestError("background: true and stream: true do not go together", param="background",
                               code="unsupported_parameter")  # fmt: skip
        if self.background and self.store is False:
            raise RequestError("background: true needs store: true", param="store", code="invalid_value")

    @property
    def tool_use(self) -> ToolUse:
        """Return what is said of tools."""
        tools = [tool.for_template() for tool in self.tools or ()]
        return ToolUse(tools, self.tool_choice, self.parallel_tool_calls is not False)

    def structure(self) -> Structure | None:
        found, form = super().structure(), self.text.format if self.text else None
        if form is None or form.type == "text":
            return found
        if form.type == "json_object":
            return both_structures(found, json_object_structure("text"))
        if form.schema_ is None:
            raise missing("text.format.schema")
        return both_structures(found, schema_structure("text", form.schema_))

    def task(self, before: list[Item], defaults: Mapping[str, float], thinks: bool) -> ChatTask:
        """Return what is to be answered.

        before: the conversation that it goes on from. defaults: of sampling fields that the request leaves out. thinks:
        whether the template lets the model think.

        Raises RequestError.
        """
        tools = self.tool_use
        structure = structure_with_calls(self.structure(), tools)
        messages = [message.for_template() for message in conversation([*before, *self.input])]
        if self.instructions is not None:
            messages = _instructed(self.instructions, messages)
        effort = None if self.reasoning is None else self.reasoning.effort
        return ChatTask(
            messages=messages,
            num_characters=sum(len(message["content"]) for message in messages),
            params=self.sampling_params(defaults, structure, max_tokens=self.max_output_tokens, logprobs=None),
            structured_by=structure[0] if structure else None,
            tools=tools,
            variables=thinking(wants_thoughts(effort), thinks, "reasoning") | (self.chat_template_kwargs or {}),
            names=Names("input", "max_output_tokens"),
        )

    @classmethod
    def describe(cls, properties: dict[str, Any], bounds: Bounds) -> None:
        schema.describe(properties, bounds)


def _instructed(instructions: str, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Many templates know one system message, the first: what the conversation begins with follows in it."""
    if messages and messages[0]["role"] == "system":
        return [{**messages[0], "content": f"{instructions}\n\n{messages[0]['content']}"}, *messages[1:]]
    return [{"role": "system", "content": instructions}, *messages]
