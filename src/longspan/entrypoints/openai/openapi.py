"""What /openapi.json says of bodies and answers, with this server's own bounds."""

from __future__ import annotations

from typing import Any

import msgspec
from pydantic.json_schema import models_json_schema

from longspan.entrypoints.openai.bounds import MAX_DEPTH, Bounds
from longspan.entrypoints.openai.context import Context
from longspan.entrypoints.openai.progress import ESTIMATE_HEADER
from longspan.entrypoints.openai.protocol import ChatCompletionRequest, CompletionRequest, SamplingFields
from longspan.entrypoints.openai.request_fields import RequestFields
from longspan.entrypoints.openai.tool_fields import CHOICES
from longspan.sampling_params import MAX_LOGIT_BIAS

Schema = dict[str, Any]

KINDS = ("json", "json_object", "regex", "choice", "grammar")
NOTHING: Schema = {"anyOf": [{"type": "array", "maxItems": 0}, {"type": "null"}]}
ERROR: Schema = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
REQUEST_ID: Schema = {"x-request-id": {"description": "The client's, or a new one", "schema": {"type": "string"}}}
ESTIMATE: Schema = {
    ESTIMATE_HEADER.lower(): {
        "description": "Seconds from arrival to the first token, as predicted; of policies that predict",
        "schema": {"type": "string"},
    }
}


def answers(
    schema: Schema, chunk: Schema | None = None, *, media_type: str = "application/json", also: str | None = None,
    error: Schema = ERROR,
) -> dict[int | str, Schema]:  # fmt: skip
    """Return the responses of an operation: its answer, or an error. chunk: schema of each server-sent event.
    also: another media type of the answer. error: the schema of errors."""
    content: Schema = {kind: {"schema": schema} for kind in (media_type, also) if kind is not None}
    if chunk is not None:
        json = {"contentMediaType": "application/json", "contentSchema": {"anyOf": [chunk, error]}}
        data = {"type": "string", "anyOf": [{"const": "[DONE]"}, json]}
        content["text/event-stream"] = {
            "schema": {"type": "object", "required": ["data"], "properties": {"data": data}}
        }
    headers = REQUEST_ID if chunk is None else REQUEST_ID | ESTIMATE
    errors: dict[int | str, Schema] = {
        status: {"description": text, "content": {"application/json": {"schema": error}}, "headers": REQUEST_ID}
        for status, text in (("4XX", "The request is refused"), ("5XX", "The server cannot answer"))
    }
    return {200: {"description": "The answer", "content": content, "headers": headers}, **errors}


def struct_schema(kind: Any) -> Schema:
    """Return the JSON schema of an answer, in one piece. kind: a struct, or a union of some."""
    (schema,), components = msgspec.json.schema_components([kind])
    found = _inline(schema, components)
    assert isinstance(found, dict)
    return found


def operation(
    context: Context, body: type[RequestFields], whole: type[msgspec.Struct], chunk: Any, error: Schema
) -> dict[str, Any]:
    """Return keyword arguments of a route whose body we decode ourselves.

    chunk: what the data of each server-sent event is, when the body says stream: true; of chats and completions the
    last data is [DONE]. error: the schema of errors.
    """
    schema = body_schema(body, context.bounds, context.engine.model_name)
    return {
        "response_model": None,
        "responses": answers(struct_schema(whole), struct_schema(chunk) if chunk else None, error=error),
        "openapi_extra": {
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": schema}},
            }
        },
    }


def body_schema(body: type[RequestFields], bounds: Bounds, model_name: str) -> Schema:
    """Describe exactly what is accepted, but for what JSON Schema cannot say: that prompt and output fit."""
    _, defined = models_json_schema([(body, "validation")])
    definitions = defined["$defs"]
    schema = _inline(definitions.pop(body.__name__), definitions)
    assert isinstance(schema, dict)
    properties: Schema = schema["properties"]
    properties["model"] = {"enum": [model_name, None]}
    if issubclass(body, SamplingFields):
        _describe_sampling(body, properties, bounds)
        schema["allOf"] = _dependencies(body)
    elif "tokens" in properties:
        properties["tokens"] = _token_ids_schema(bounds) | {"minItems": 0}
    elif "prompt" in properties:
        _describe_tokenize(properties, schema, bounds)
    body.describe(properties, bounds)
    schema["additionalProperties"] = True
    return schema


def _describe_sampling(body: type[SamplingFields], properties: Schema, bounds: Bounds) -> None:
    least = 0 if body is CompletionRequest else 1
    limit = {"type": "integer", "minimum": least, "maximum": bounds.prompt_tokens}
    for name in ("max_tokens", "max_completion_tokens", "max_output_tokens"):
        if name in properties:
            needed = body.model_fields[name].is_required()
            properties[name] = limit if needed else {"anyOf": [limit, {"type": "null"}]}
    biases = {
        "type": "object", "additionalProperties": False, "maxProperties": MAX_LOGIT_BIAS,
        "patternProperties": {f"^({_below(bounds.vocab_size)})$": {"type": "number", "minimum": -100, "maximum": 100}},
    }  # fmt: skip
    properties["logit_bias"] = {"anyOf": [biases, {"type": "null"}]}
    properties["n"] = {
        "anyOf": [{"type": "integer", "minimum": 1, "maximum": min(128, bounds.choices)}, {"type": "null"}]
    }
    if body is CompletionRequest:
        properties["prompt"] = _prompt_schema(bounds)
    if body is ChatCompletionRequest:
        _describe_messages(properties["messages"], bounds)
        named = {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}}}
        function: Schema = {"type": {"const": "function"}, "function": named}
        properties["tool_choice"] = {"anyOf": [
            {"enum": [None, *CHOICES]}, {"type": "object", "required": ["type", "function"], "properties": function},
        ]}  # fmt: skip
        properties["chat_template_kwargs"]["description"] = f"Variables of the template, {MAX_DEPTH} levels at most"
    _describe_structure(properties)
    for name, harmless in body.unsupported.items():
        properties[name] = {"enum": list(harmless)}


def _describe_tokenize(properties: Schema, schema: Schema, bounds: Bounds) -> None:
    """A prompt, or messages."""
    properties["prompt"] = {"type": "string", "maxLength": bounds.prompt_chars}
    properties["messages"] = next(way for way in properties["messages"]["anyOf"] if way["type"] == "array")
    _describe_messages(properties["messages"], bounds)
    schema["oneOf"] = [{"required": ["prompt"]}, {"required": ["messages"]}]


def _below(number: int) -> str:
    """Return a regular expression of the whole numbers from 0 on that are below it."""
    most = str(number - 1)
    ways = ["0", *(f"[1-9][0-9]{{{digits}}}" for digits in range(len(most) - 1)), most]
    for place, digit in enumerate(most):
        if (low := 1 if place == 0 else 0) < int(digit):
            ways.append(f"{most[:place]}[{low}-{int(digit) - 1}][0-9]{{{len(most) - place - 1}}}")
    return "|".join(ways)


def _token_ids_schema(bounds: Bounds) -> Schema:
    token_id = {"type": "integer", "minimum": 0, "maximum": bounds.vocab_size - 1}
    return {"type": "array", "items": token_id, "minItems": 1, "maxItems": bounds.prompt_tokens}


def _prompt_schema(bounds: Bounds) -> Schema:
    text = {"type": "string", "minLength": 1, "maxLength": bounds.prompt_chars}
    token_ids = _token_ids_schema(bounds)
    several = {"minItems": 1, "maxItems": bounds.choices}
    return {
        "anyOf": [
            text,
            {"type": "array", "items": text, **several},
            token_ids,
            {"type": "array", "items": token_ids, **several},
        ]
    }


def _describe_messages(messages: Schema, bounds: Bounds) -> None:
    messages["maxItems"] = bounds.prompt_tokens
    message = messages["items"]
    content = message["properties"].pop("content")
    message["properties"]["audio"] = message["properties"]["function_call"] = {"enum": [None]}
    roles = ["system", "developer", "user", "tool"]
    message["properties"]["content"] = {"anyOf": [content, {"type": "null"}]}
    message["allOf"] = [
        {
            "if": {"properties": {"role": {"enum": roles}}, "required": ["role"]},
            "then": {
                "required": ["content"],
                "properties": {"content": content, "tool_calls": NOTHING},
            },
        }
    ]


def _given(name: str, schema: Schema) -> Schema:
    return {"properties": {name: schema}, "required": [name]}


def _dependencies(body: type[SamplingFields]) -> list[Schema]:
    """What needs another field."""
    true = {"const": True}
    needs: list[tuple[Schema, Schema]] = [
        (_given("stream_options", {"type": "object"}), _given("stream", true)),
        (_given("progress", true), _given("stream", true)),
        (_given("prompt_logprobs", {"type": "integer"}), {"properties": {"stream": {"enum": [None, False]}}}),
    ]
    if body is ChatCompletionRequest:
        needs += [
            (_given("top_logprobs", {"type": "integer", "minimum": 1}), _given("logprobs", true)),
        ]
    return [{"if": condition, "then": then} for condition, then in needs]


def _describe_structure(properties: Schema) -> None:
    """Each field says in one way, or not at all, what the answer must look like; that two do not go together is not
    said, for whoever makes examples of a schema could not follow it."""
    field = properties["structured_outputs"]["anyOf"][0]
    for name in ("disable_any_whitespace", "disable_additional_properties"):
        field["properties"][name] = {"enum": [False, None]}
    kinds = {name: given["anyOf"] for name in KINDS if "anyOf" in (given := field["properties"][name])}
    kinds["json_object"] = [{"const": True}]
    silent = {name: {"enum": [None]} for name in kinds} | {"json_object": {"enum": [False, None]}}
    properties["structured_outputs"] = {"anyOf": [{"type": "null"}, *(
        {**field, "properties": {**field["properties"], **silent, name: {"anyOf": [*ways, {"type": "null"}]}}}
        for name, ways in kinds.items()
    )]}  # fmt: skip
    text, schema = {"enum": ["text", "json_object"]}, {"const": "json_schema"}
    given = properties["response_format"]["anyOf"][0]
    inner = given["properties"]["json_schema"]
    properties["response_format"] = {"anyOf": [
        {"type": "null"},
        {"type": "object", "required": ["type"], "properties": {"type": text, "json_schema": inner}},
        {"type": "object", "required": ["type", "json_schema"],
         "properties": {"type": schema, "json_schema": inner["anyOf"][0]}},
    ]}  # fmt: skip


def _inline(schema: Any, definitions: dict[str, Any]) -> Any:
    """Without references: bodies and answers are not recursive."""
    if isinstance(schema, list):
        return [_inline(item, definitions) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _inline(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    return {name: _inline(value, definitions) for name, value in schema.items() if name not in ("title", "default")}
