"""What OpenAI's published OpenAPI document says of answers, as far as this server gives them, as JSON schemas.

Its schemas CreateChatCompletionResponse, CreateChatCompletionStreamResponse, CreateCompletionResponse, Model,
ListModelsResponse and ErrorResponse: which properties there must be, of what types, what may be null, which words are
allowed. Other properties may be there. In two places the real service differs from its document, and so do we: a stream
of /v1/completions has `finish_reason: null`, and, where usage was asked for, `usage: null` until its end.
"""

from __future__ import annotations

from typing import Any

import jsonschema_rs

Schema = dict[str, Any]
STRING, INTEGER, NUMBER = {"type": "string"}, {"type": "integer"}, {"type": "number"}
NULL = {"type": "null"}


def nullable(schema: Schema) -> Schema:
    return {"anyOf": [schema, NULL]}


def one_of(*words: str) -> Schema:
    return {"type": "string", "enum": list(words)}


def array(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def record(required: str, **properties: Schema) -> Schema:
    """required: names, with spaces between them."""
    return {"type": "object", "required": required.split(), "properties": properties}


USAGE = record(
    "prompt_tokens completion_tokens total_tokens",
    prompt_tokens=INTEGER, completion_tokens=INTEGER, total_tokens=INTEGER,
)  # fmt: skip
TOP = {"token": STRING, "logprob": NUMBER, "bytes": nullable(array(INTEGER))}
TOKEN = record("token logprob bytes top_logprobs", **TOP, top_logprobs=array(record("token logprob bytes", **TOP)))
CHAT_LOGPROBS = record("content refusal", content=nullable(array(TOKEN)), refusal=nullable(array(TOKEN)))
CHAT_REASONS = one_of("stop", "length", "tool_calls", "content_filter", "function_call")
ENVELOPE = {"id": STRING, "created": INTEGER, "model": STRING, "system_fingerprint": STRING}

CHAT = record(
    "id choices created model object",
    **ENVELOPE,
    object=one_of("chat.completion"),
    usage=USAGE,
    choices=array(
        record(
            "finish_reason index message logprobs",
            finish_reason=CHAT_REASONS,
            index=INTEGER,
            logprobs=nullable(CHAT_LOGPROBS),
            message=record(
                "role content refusal",
                role=one_of("assistant"),
                content=nullable(STRING),
                refusal=nullable(STRING),
            ),
        )
    ),
)
CHAT_CHUNK = record(
    "id choices created model object",
    **ENVELOPE,
    object=one_of("chat.completion.chunk"),
    usage=nullable(USAGE),
    choices=array(
        record(
            "delta finish_reason index",
            delta=record("", role=one_of("assistant"), content=nullable(STRING), refusal=nullable(STRING)),
            finish_reason=nullable(CHAT_REASONS),
            index=INTEGER,
            logprobs=nullable(CHAT_LOGPROBS),
        )
    ),
)


def completion(finish_reason: Schema, usage: Schema) -> Schema:
    return record(
        "id object created model choices",
        **ENVELOPE,
        object=one_of("text_completion"),
        usage=usage,
        choices=array(
            record(
                "finish_reason index logprobs text",
                finish_reason=finish_reason,
                index=INTEGER,
                text=STRING,
                logprobs=nullable(
                    record(
                        "",
                        text_offset=array(INTEGER),
                        token_logprobs=array(NUMBER),
                        tokens=array(STRING),
                        top_logprobs=array({"type": "object", "additionalProperties": NUMBER}),
                    )
                ),
            )
        ),
    )


REASONS = one_of("stop", "length", "content_filter")
COMPLETION = completion(REASONS, USAGE)
COMPLETION_CHUNK = completion(nullable(REASONS), nullable(USAGE))
MODEL = record(
    "id object created owned_by", id=STRING, object=one_of("model"), created=INTEGER, owned_by=STRING
)
MODELS = record("object data", object=one_of("list"), data=array(MODEL))
ERROR = record(
    "error",
    error=record(
        "type message param code", type=STRING, message=STRING, param=nullable(STRING), code=nullable(STRING)
    ),
)


def check(document: object, schema: Schema) -> None:
    """Raises jsonschema_rs.ValidationError."""
    jsonschema_rs.validate(schema, document)
