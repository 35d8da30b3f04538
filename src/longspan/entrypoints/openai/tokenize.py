"""POST /tokenize, /detokenize, GET /tokenizer_info: what the tokenizer makes of a text or a conversation, and of token
ids, and what it is. vLLM's."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
import numpy as np
from fastapi import APIRouter, Response
from msgspec import Struct
from pydantic import Field, SkipValidation

from longspan.entrypoints.openai.context import Context
from longspan.entrypoints.openai.generation import check_servable
from longspan.entrypoints.openai.messages import ChatMessage
from longspan.entrypoints.openai.openapi import answers, struct_schema
from longspan.entrypoints.openai.request_fields import RequestFields
from longspan.entrypoints.openai.requests import endpoint
from longspan.entrypoints.openai.tool_fields import MAX_TOOLS, Tool
from longspan.errors import RequestError
from longspan.metrics.prometheus import Arrival

_FEW = 4096  # tokens that are decoded where they are


class TokenizeRequest(RequestFields):
    """A text, or messages as the chat template writes them."""

    prompt: SkipValidation[list[Any]] | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1)] | None = None
    add_special_tokens: bool = True
    add_generation_prompt: bool = True
    return_token_strs: bool | None = None
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS)] | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    def check(self) -> None:
        if (self.prompt is None) == (self.messages is None):
            raise RequestError("give a prompt, or messages", param="prompt", code="invalid_value")
        if self.prompt is not None and (len(self.prompt) != 1 or not isinstance(self.prompt[0], str)):
            raise RequestError("prompt must be a text", param="prompt", code="invalid_type")


class TokenizeAnswer(Struct):
    """token_strs: their names in the vocabulary, if they were asked for."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeRequest(RequestFields):
    tokens: Any  # an array of int32 by now


class DetokenizeAnswer(Struct):
    """Special tokens have their names."""

    prompt: str


class TokenizerInfo(Struct):
    """What programs need that write prompts themselves, such as lm-eval; null where the tokenizer has none.

    chat_template: in Jinja; the default one of several. The others: texts of special tokens.
    """

    tokenizer_class: str | None
    chat_template: str | None
    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    unk_token: str | None


def tokenize_router(context: Context) -> APIRouter:
    return endpoint(context, "/tokenize", "tokenize", TokenizeRequest, TokenizeAnswer, None, _tokenize)


def detokenize_router(context: Context) -> APIRouter:
    return endpoint(context, "/detokenize", "detokenize", DetokenizeRequest, DetokenizeAnswer, None, _detokenize)


def tokenizer_info_router(context: Context) -> APIRouter:
    router = APIRouter()

    @router.get("/tokenizer_info", responses=answers(struct_schema(TokenizerInfo)))
    async def tokenizer_info() -> Response:
        info = TokenizerInfo(**context.engine.tokenizer.info())
        return Response(msgspec.json.encode(info), media_type="application/json")

    return router


async def _tokenize(context: Context, body: TokenizeRequest, arrival: Arrival, request_id: str) -> Response:
    check_servable(context, body.model)
    engine = context.engine
    ids = await _token_ids(context, body)

    def write() -> bytes:
        tokens = ids.tolist()
        names = [engine.tokenizer.token(token) or "" for token in tokens] if body.return_token_strs else None
        return msgspec.json.encode(TokenizeAnswer(len(tokens), engine.request_limit, tokens, names))

    data = write() if len(ids) <= _FEW else await context.pool.run(lambda _: write(), len(ids))
    return Response(data, media_type="application/json")


async def _token_ids(context: Context, body: TokenizeRequest) -> np.ndarray:
    if body.messages is None:
        (ids,) = await context.texts.encode(body.prompt or [], body.add_special_tokens)
        return ids
    variables = dict(body.chat_template_kwargs or {})
    if tools := [tool.model_dump(exclude_unset=True) for tool in body.tools or ()]:
        variables["tools"] = tools
    if not body.add_generation_prompt:
        variables["add_generation_prompt"] = False
    messages = [message.for_template() for message in body.messages]
    ids, _ = await context.texts.encode_chat(messages, variables, sum(len(m.content or "") for m in body.messages))
    return ids


async def _detokenize(context: Context, body: DetokenizeRequest, arrival: Arrival, request_id: str) -> Response:
    check_servable(context, body.model)
    engine, ids = context.engine, body.tokens
    if (highest := int(ids.max(initial=0))) >= engine.vocab_size:
        raise RequestError(
            f"tokens holds token id {highest}, but the model knows only those from 0 to {engine.vocab_size - 1}",
            param="tokens", code="invalid_value",
        )  # fmt: skip

    def write() -> bytes:
        return msgspec.json.encode(DetokenizeAnswer(engine.tokenizer.decode(ids.tolist(), skip_special_tokens=False)))

    data = write() if len(ids) <= _FEW else await context.pool.run(lambda _: write(), len(ids))
    return Response(data, media_type="application/json")
