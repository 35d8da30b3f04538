"""POST /v1/chat/completions."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

import msgspec
from fastapi import APIRouter, Response
from msgspec import UNSET

from longspan.entrypoints.openai import sse
from longspan.entrypoints.openai.context import Context
from longspan.entrypoints.openai.generation import (
    Job,
    Names,
    UsageCount,
    check_servable,
    collect,
    make_jobs,
    run,
)
from longspan.entrypoints.openai.limits import check_choices
from longspan.entrypoints.openai.logprobs import chat_logprobs
from longspan.entrypoints.openai.protocol import ChatCompletionRequest
from longspan.entrypoints.openai.requests import endpoint
from longspan.entrypoints.openai.responses import (
    AnswerMessage,
    ChatAnswer,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    Delta,
)
from longspan.metrics.prometheus import Arrival


def chat_router(context: Context) -> APIRouter:
    return endpoint(
        context, "/v1/chat/completions", "create_chat_completion", ChatCompletionRequest, ChatAnswer, ChatChunk, _answer
    )


async def _answer(context: Context, body: ChatCompletionRequest, arrival: Arrival, request_id: str) -> Response:
    check_servable(context, body.model)
    check_choices(context.engine, body.choices_per_prompt, "n")
    defaults = context.engine.default_sampling
    params = body.sampling_params(defaults, max_tokens=body.token_limit, logprobs=body.num_logprobs)
    messages, size = [message.for_template() for message in body.messages], body.num_characters
    prompt = await context.texts.encode_chat(messages, body.chat_template_kwargs or {}, size)
    answer_id = f"chatcmpl-{request_id}"
    names = Names("messages", body.limit_name)
    jobs = make_jobs(context, arrival, answer_id, [prompt], params, body.choices_per_prompt, names)
    usage = UsageCount([prompt])
    if body.stream:
        chunk = ChatChunk(answer_id, int(time.time()), context.engine.model_name, [], context.engine.fingerprint)
        events = _stream(context, body, arrival, chunk, jobs, usage)
        return await sse.open_event_stream(context, events)
    return await _whole(context, body, arrival, answer_id, jobs, usage)


async def _whole(
    context: Context, body: ChatCompletionRequest, arrival: Arrival, answer_id: str, jobs: Sequence[Job],
    usage: UsageCount,
) -> Response:  # fmt: skip
    created = int(time.time())
    choices = [
        ChatChoice(
            index=index,
            message=AnswerMessage(choice.text),
            finish_reason=choice.finish_reason,
            logprobs=chat_logprobs(choice.logprobs) if body.logprobs else None,
            stop_reason=choice.stop_reason,
        )
        for index, choice in enumerate(await collect(context, arrival, jobs, usage))
    ]
    whole = ChatAnswer(
        answer_id, created, context.engine.model_name, choices, usage.usage(), context.engine.fingerprint
    )
    return Response(msgspec.json.encode(whole), media_type="application/json")


async def _stream(
    context: Context, body: ChatCompletionRequest, arrival: Arrival, chunk: ChatChunk, jobs: Sequence[Job],
    usage: UsageCount,
) -> AsyncGenerator[bytes, None]:  # fmt: skip
    """For each choice its role, then one chunk for each engine output, the last with its finish reason.

    As vLLM does: the role goes out with the first token, not before, so that clients time that one rightly;
    and a token that gave no text yet is a chunk too, because clients count them.
    """
    options = body.usage_options
    chunk.usage = None if options.include_usage else UNSET
    introduced = [False] * len(jobs)
    async with aclosing(run(context, arrival, jobs)) as outputs:
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
