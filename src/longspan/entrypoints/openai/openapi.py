"""What /openapi.json says of bodies and answers, with this server's own bounds."""

from __future__ import annotations

from typing import Any

import msgspec
from pydantic.json_schema import models_json_schema

from longspan.entrypoints.openai.bounds import MAX_DEPTH, Bounds
from longspan.entrypoints.openai.context import Context
from longspan.entrypoints.openai.protocol import ChatCompletionRequest, CompletionRequest, SamplingFields

Schema = dict[str, Any]

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
ERRORS: dict[int | str, Schema] = {
    status: {"description": text, "content": {"application/json": {"schema": ERROR}}, "headers": REQUEST_ID}
    for status, text in (("4XX", "The request is refused: an error in OpenAI's shape"),
                         ("5XX", "The server cannot answer: an error in OpenAI's shape"))
}  # fmt: skip


def answers(
    schema: Schema, chunk: Schema | None = None, *, media_type: str = "application/json"
) -> dict[int | str, Schema]:
    """Return the responses of an operation: its answer, or an error. chunk: schema of each server-sent event."""
    content: Schema = {media_type: {"schema": schema}}
    if chunk is not None:
        json = {"contentMediaType": "application/json", "contentSchema": {"anyOf": [chunk, ERROR]}}
        data = {"type": "string", "anyOf": [{"const": "[DONE]"}, json]}
        content["text/event-stream"] = {
            "schema": {"type": "object", "required": ["data"], "properties": {"data": data}}
        }
    return {200: {"description": "The answer", "content": content, "headers": REQUEST_ID}, **ERRORS}


def struct_schema(kind: type[msgspec.Struct]) -> Schema:
    """Return the JSON schema of an answer, in one piece."""
    (schema,), components = msgspec.json.schema_components([kind])
    found = _inline(schema, components)
    assert isinstance(found, dict)
    return found


def operation(
    context: Context, body: type[SamplingFields], whole: type[msgspec.Struct], chunk: type[msgspec.Struct]
) -> dict[str, Any]:
    """Return keyword arguments of a route whose body we decode ourselves.

    chunk: what the data of each server-sent event is, when the body says stream: true; the last data is [DONE].
    """
    schema = body_schema(body, context.bounds, context.engine.model_name)
    return {
        "response_model": None,
        "responses": answers(struct_schema(whole), struct_schema(chunk)),
        "openapi_extra": {
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": schema}},
            }
        },
    }


def body_schema(body: type[SamplingFields], bounds: Bounds, model_name: str) -> Schema:
    """Describe exactly what is accepted, but for what JSON Schema cannot say: that prompt and output fit."""
    _, defined = models_json_schema([(body, "validation")])
    definitions = defined["$defs"]
    schema = _inline(definitions.pop(body.__name__), definitions)
    assert isinstance(schema, dict)
    properties: Schema = schema["properties"]
    properties["model"] = {"enum": [model_name, None]}
    limit = {"type": "integer", "minimum": 1, "maximum": bounds.prompt_tokens}
    for name in ("max_tokens", "max_completion_tokens"):
        if name in properties:
            properties[name] = {"anyOf": [limit, {"type": "null"}]}
    for name, harmless in body.unsupported.items():
        properties[name] = {"enum": list(harmless)}
    properties["n"] = {
        "anyOf": [{"type": "integer", "minimum": 1, "maximum": min(128, bounds.choices)}, {"type": "null"}]
    }
    if body is CompletionRequest:
        properties["prompt"] = _prompt_schema(bounds)
    if body is ChatCompletionRequest:
        _describe_messages(properties["messages"], bounds)
        properties["tool_choice"] = {"enum": [None, "none", "auto"]}
        properties["chat_template_kwargs"]["description"] = f"Variables of the template, {MAX_DEPTH} levels at most"
    schema["allOf"] = _dependencies(body)
    schema["additionalProperties"] = True
    return schema


def _prompt_schema(bounds: Bounds) -> Schema:
    text = {"type": "string", "minLength": 1, "maxLength": bounds.prompt_chars}
    token_id = {"type": "integer", "minimum": 0, "maximum": bounds.vocab_size - 1}
    token_ids = {"type": "array", "items": token_id, "minItems": 1, "maxItems": bounds.prompt_tokens}
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
        (
            _given("min_tokens", {"type": "integer", "minimum": 1}),
            {
                **_given("ignore_eos", true),
                "properties": {
                    "ignore_eos": true,
                    "stop": NOTHING,
                    "stop_token_ids": NOTHING,
                },
            },
        ),
    ]
    if body is ChatCompletionRequest:
        needs += [
            (_given("top_logprobs", {"type": "integer", "minimum": 1}), _given("logprobs", true)),
            (_given("tools", {"type": "array", "minItems": 1}), _given("tool_choice", {"const": "none"})),
        ]
    return [{"if": condition, "then": then} for condition, then in needs]


def _inline(schema: Any, definitions: dict[str, Any]) -> Any:
    """Without references: bodies and answers are not recursive."""
    if isinstance(schema, list):
        return [_inline(item, definitions) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _inline(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    return {name: _inline(value, definitions) for name, value in schema.items() if name not in ("title", "default")}
