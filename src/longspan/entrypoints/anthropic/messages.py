"""POST /v1/messages and /v1/messages/count_tokens, as Anthropic has them."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from secrets import token_hex
from typing import Any

import msgspec
from fastapi import APIRouter, Response

from longspan.entrypoints.anthropic import schema
from longspan.entrypoints.anthropic.answers import (
    ContentBlock,
    ContentBlockDelta,
    ContentBlockStart,
    ContentBlockStop,
    EndOfMessage,
    InputJSONDelta,
    Message,
    MessageDelta,
    MessageStart,
    MessageStop,
    MessageUsage,
    Ping,
    StopReason,
    StreamEvent,
    TextBlock,
    TextDelta,
    ThinkingBlock,
    ThinkingDelta,
    TokenCount,
    ToolUseBlock,
)
from longspan.entrypoints.anthropic.request import CountTokensRequest, MessagesRequest
from longspan.entrypoints.openai import sse
from longspan.entrypoints.openai.answers import ProgressEvent
from longspan.entrypoints.openai.blocks import Block, BlockReader, Step
from longspan.entrypoints.openai.chat_run import begin_chat, encode_conversation
from longspan.entrypoints.openai.context import Context
from longspan.entrypoints.openai.errors import ErrorAnswer
from longspan.entrypoints.openai.generation import UsageCount, check_servable
from longspan.entrypoints.openai.progress import ProgressNews, estimate_headers
from longspan.entrypoints.openai.requests import endpoint
from longspan.metrics.prometheus import Arrival


def messages_router(context: Context) -> APIRouter:
    return endpoint(
        context, "/v1/messages", "create_message", MessagesRequest, Message, StreamEvent, _answer, error=schema.ERROR
    )


def count_tokens_router(context: Context) -> APIRouter:
    return endpoint(
        context, "/v1/messages/count_tokens", "count_tokens", CountTokensRequest, TokenCount, None, _count,
        error=schema.ERROR,
    )  # fmt: skip


async def _count(context: Context, body: CountTokensRequest, arrival: Arrival, request_id: str) -> Response:
    check_servable(context, body.model)
    variables = body.variables(context.engine.tokenizer.chat_format.thinks)
    prompt, _ = await encode_conversation(context, body.conversation, body.num_characters, variables, body.tool_use)
    return Response(msgspec.json.encode(TokenCount(len(prompt))), media_type="application/json")


async def _answer(context: Context, body: MessagesRequest, arrival: Arrival, request_id: str) -> Response:
    check_servable(context, body.model)
    engine = context.engine
    task = body.task(engine.default_sampling, engine.tokenizer.chat_format.thinks)
    run = await begin_chat(context, task, arrival, f"msg_{request_id}")
    message = Message(f"msg_{request_id}", engine.model_name, [], _usage(run.usage))
    reader = BlockReader(run)
    if body.stream:
        progress = None
        if body.progress:
            progress = ProgressNews(engine, run.jobs, context.pace, lambda news: sse.tagged_event(ProgressEvent(news)))
        wire = sse.Wire(
            error=lambda answer: _error(answer, request_id),
            begin=sse.tagged_event(MessageStart(message)) + _PING,
            keep_alive=_PING,
        )
        return await sse.open_event_stream(context, _stream(reader), run.jobs, progress, wire)
    await reader.read_all()
    message.content = [_whole(block) for block in reader.blocks]
    message.stop_reason, message.stop_sequence = _end(reader)
    message.usage = _usage(run.usage)
    headers = estimate_headers(engine, run.jobs)
    return Response(msgspec.json.encode(message), headers=headers, media_type="application/json")


_PING = sse.tagged_event(Ping())


def _error(answer: ErrorAnswer, request_id: str) -> bytes:
    return b"event: error\ndata: " + answer.anthropic_json(request_id) + b"\n\n"


async def _stream(reader: BlockReader) -> AsyncGenerator[bytes, None]:
    """Each block from its start to its stop, and then why it ended."""
    async with aclosing(reader.steps()) as steps:
        async for step in steps:
            yield sse.tagged_event(_event(step))
    reason, sequence = _end(reader)
    yield sse.tagged_event(MessageDelta(EndOfMessage(reason, sequence), _usage(reader.run.usage)))
    yield sse.tagged_event(MessageStop())


def _event(step: Step) -> ContentBlockStart | ContentBlockDelta | ContentBlockStop:
    block = step.block
    if step.what == "begin":
        return ContentBlockStart(block.index, _begun(block))
    if step.what == "end":
        return ContentBlockStop(block.index)
    if block.kind == "call":
        return ContentBlockDelta(block.index, InputJSONDelta(step.text))
    return ContentBlockDelta(block.index, TextDelta(step.text) if block.kind == "content" else ThinkingDelta(step.text))


def _begun(block: Block) -> ContentBlock:
    if block.kind == "content":
        return TextBlock("")
    return ThinkingBlock("") if block.kind == "reasoning" else ToolUseBlock(_call_id(), block.name, {})


def _whole(block: Block) -> ContentBlock:
    if block.kind == "content":
        return TextBlock(block.text)
    if block.kind == "reasoning":
        return ThinkingBlock(block.text)
    return ToolUseBlock(_call_id(), block.name, _input(block.text))


def _call_id() -> str:
    return f"toolu_{token_hex(12)}"


def _input(text: str) -> Any:
    """The object that the model has written, as it is; what is none is told as Anthropic advises for such."""
    if not text.strip():
        return {}
    try:
        if isinstance(msgspec.json.decode(text), dict):
            return msgspec.Raw(text.encode())
    except (msgspec.DecodeError, ValueError, RecursionError):
        pass
    return {"INVALID_JSON": text}


def _end(reader: BlockReader) -> tuple[StopReason, str | None]:
    """Why the answer ended, and which stop sequence did it."""
    if reader.finish_reason == "length":
        return "max_tokens", None
    if isinstance(reader.stop_reason, str):
        return "stop_sequence", reader.stop_reason
    return ("tool_use" if any(block.kind == "call" for block in reader.blocks) else "end_turn"), None


def _usage(count: UsageCount) -> MessageUsage:
    found = count.cached_tokens
    return MessageUsage(count.prompt_tokens - found, count.completion_tokens, found)
