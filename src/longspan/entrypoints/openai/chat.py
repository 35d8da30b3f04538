"""POST /v1/chat/completions."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from functools import partial

import msgspec
from fastapi import APIRouter, Request, Response
from msgspec import UNSET

from longspan.entrypoints.openai import sse
from longspan.entrypoints.openai.context import Context
from longspan.entrypoints.openai.disconnect import unless_disconnected
from longspan.entrypoints.openai.generation import (
    Job,
    UsageCount,
    check_servable,
    collect,
    encode,
    make_jobs,
    run,
)
from longspan.entrypoints.openai.logprobs import chat_logprobs
from longspan.entrypoints.openai.protocol import UNSUPPORTED_CHAT, ChatCompletionRequest
from longspan.entrypoints.openai.request_id import request_id_of
from longspan.entrypoints.openai.responses import (
    AnswerMessage,
    ChatAnswer,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    Delta,
)


def chat_router(context: Context) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/chat/completions")
    async def create_chat_completion(body: ChatCompletionRequest, request: Request) -> Response:
        work = _answer(context, body, request_id_of(request.scope))
        return await unless_disconnected(request.receive, work)

    return router


async def _answer(context: Context, body: ChatCompletionRequest, request_id: str) -> Response:
    body.check(UNSUPPORTED_CHAT)
    check_servable(context, body.model)
    params = body.sampling_params(max_tokens=body.token_limit, logprobs=body.num_logprobs)
    prompt = await _token_ids(context, body)
    answer_id = f"chatcmpl-{request_id}"
    jobs = make_jobs(context, answer_id, [prompt], params, body.choices_per_prompt, "messages")
    usage = UsageCount([prompt])
    if body.stream:
        chunk = ChatChunk(answer_id, int(time.time()), context.engine.model_name, [])
        events = _stream(context, body, chunk, jobs, usage)
        return await sse.open_event_stream(context, events)
    return await _whole(context, body, answer_id, jobs, usage)


async def _token_ids(context: Context, body: ChatCompletionRequest) -> Sequence[int]:
    """The messages in the model's own chat template."""
    messages = [message.for_template() for message in body.messages]
    apply = partial(context.engine.tokenizer.apply_chat_template, messages, **body.chat_template_kwargs or {})
    return await encode(apply, sum(len(message.content) for message in body.messages), "messages")


async def _whole(
    context: Context, body: ChatCompletionRequest, answer_id: str, jobs: Sequence[Job], usage: UsageCount
) -> Response:
    created = int(time.time())
    choices = [
        ChatChoice(
            index=index,
            message=AnswerMessage(choice.text),
            finish_reason=choice.finish_reason,
            logprobs=chat_logprobs(choice.logprobs) if body.logprobs else None,
            stop_reason=choice.stop_reason,
        )
        for index, choice in enumerate(await collect(context, jobs, usage))
    ]
    answer = ChatAnswer(answer_id, created, context.engine.model_name, choices, usage.usage())
    return Response(msgspec.json.encode(answer), media_type="application/json")


async def _stream(
    context: Context, body: ChatCompletionRequest, chunk: ChatChunk, jobs: Sequence[Job], usage: UsageCount
) -> AsyncGenerator[bytes, None]:
    """For each choice its role, then one chunk for each engine output, the last with its finish reason.

    As vLLM does: the role goes out with the first token, not before, so that clients time that one rightly;
    and a token that gave no text yet is a chunk too, because clients count them.
    """
    options = body.usage_options
    chunk.usage = None if options.include_usage else UNSET
    introduced = [False] * len(jobs)
    async with aclosing(run(context, jobs)) as outputs:
        async for job, output in outputs:
            if not introduced[job.index]:
                introduced[job.index] = True
                chunk.choices = [ChatChunkChoice(job.index, Delta("assistant", ""))]
                yield sse.event(chunk)
            usage.add(output)
            choice = ChatChunkChoice(job.index, Delta(content=output.text), None, output.finish_reason)
            if output.finished:
                choice.stop_reason = output.stop_reason
            if output.logprobs is not None:
                choice.logprobs = chat_logprobs(output.logprobs)
            chunk.choices = [choice]
            if options.continuous_usage_stats:
                chunk.usage = usage.usage()
            yield sse.event(chunk)
    if options.include_usage:
        chunk.choices = []
        chunk.usage = usage.usage()
        yield sse.event(chunk)
    yield sse.DONE
