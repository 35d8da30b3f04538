"""POST /v1/chat/completions."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

import msgspec
from fastapi import APIRouter, Response
from msgspec import UNSET

from longspan.entrypoints.openai import sse
from longspan.entrypoints.openai.answers import (
    ChatAnswer,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    Delta,
)
from longspan.entrypoints.openai.chat_run import ChatRun, begin_chat
from longspan.entrypoints.openai.context import Context
from longspan.entrypoints.openai.echo import off_the_loop
from longspan.entrypoints.openai.generation import check_servable, collect
from longspan.entrypoints.openai.logprobs import chat_logprobs, prompt_logprobs
from longspan.entrypoints.openai.progress import ProgressNews, estimate_headers
from longspan.entrypoints.openai.protocol import ChatCompletionRequest
from longspan.entrypoints.openai.requests import endpoint
from longspan.entrypoints.openai.tool_calls import ChoiceReader
from longspan.metrics.prometheus import Arrival


def chat_router(context: Context) -> APIRouter:
    return endpoint(
        context, "/v1/chat/completions", "create_chat_completion", ChatCompletionRequest, ChatAnswer, ChatChunk, _answer
    )


async def _answer(context: Context, body: ChatCompletionRequest, arrival: Arrival, request_id: str) -> Response:
    answer_id = f"chatcmpl-{request_id}"
    check_servable(context, body.model)
    task = body.task(context.engine.default_sampling, context.engine.tokenizer.chat_format.thinks)
    run = await begin_chat(context, task, arrival, answer_id)
    readers = [ChoiceReader(reader) for reader in run.readers]
    if body.stream:
        chunk = ChatChunk(answer_id, int(time.time()), context.engine.model_name, [], context.engine.fingerprint)
        events = _stream(body, chunk, run, readers)
        progress = None
        if body.progress:
            engine = context.engine
            progress = ProgressNews(engine, run.jobs, context.pace, lambda news: sse.progress_event(chunk, news))
        return await sse.open_event_stream(context, events, run.jobs, progress)
    return await _whole(context, body, answer_id, run, readers)


async def _whole(
    context: Context, body: ChatCompletionRequest, answer_id: str, run: ChatRun, readers: Sequence[ChoiceReader]
) -> Response:
    created = int(time.time())
    texts = await collect(context, run.arrival, run.jobs, run.usage)
    for reader, text in zip(readers, texts, strict=True):
        reader.take(text.text, finished=True)
    choices = [
        ChatChoice(
            index=index,
            message=readers[index].message(),
            finish_reason=readers[index].finish_reason(choice.finish_reason),
            logprobs=chat_logprobs(choice.logprobs) if body.logprobs else None,
            stop_reason=choice.stop_reason,
        )
        for index, choice in enumerate(texts)
    ]
    engine = context.engine
    whole = ChatAnswer(answer_id, created, engine.model_name, choices, run.usage.usage(), engine.fingerprint)
    if body.prompt_logprobs is not None and texts[0].prompt_logprobs is not None:
        whole.prompt_logprobs = await off_the_loop(context, prompt_logprobs, texts[0].prompt_logprobs)
    headers = estimate_headers(engine, run.jobs)
    return Response(msgspec.json.encode(whole), headers=headers, media_type="application/json")


async def _stream(
    body: ChatCompletionRequest, chunk: ChatChunk, run: ChatRun, readers: Sequence[ChoiceReader]
) -> AsyncGenerator[bytes, None]:
    """For each choice its role, then one chunk for each engine output, the last with its finish reason.

    As vLLM does: the role goes out with the first token, not before, so that clients time that one rightly;
    and a token that gave no text yet is a chunk too, because clients count them.
    """
    options = body.usage_options
    chunk.usage = None if options.include_usage else UNSET
    introduced = [False] * len(run.jobs)
    async with aclosing(run.outputs()) as outputs:
        async for job, output in outputs:
            if not introduced[job.index]:
                introduced[job.index] = True
                chunk.choices = [ChatChunkChoice(job.index, Delta("assistant", ""))]
                yield sse.event(chunk)
            run.usage.add(job, output)
            reader = readers[job.index]
            delta = reader.take(output.text, output.finished)
            choice = ChatChunkChoice(job.index, delta, None, reader.finish_reason(output.finish_reason))
            if output.finished:
                choice.stop_reason = output.stop_reason
            if output.logprobs is not None:
                choice.logprobs = chat_logprobs(output.logprobs)
            chunk.choices = [choice]
            if options.continuous_usage_stats:
                chunk.usage = run.usage.usage()
            yield sse.event(chunk)
    if options.include_usage:
        chunk.choices = []
        chunk.usage = run.usage.usage()
        yield sse.event(chunk)
    yield sse.DONE
