"""POST /v1/completions."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

import msgspec
from fastapi import APIRouter, Response
from msgspec import UNSET

from longspan.engine.protocol import TokenIds
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
from longspan.entrypoints.openai.logprobs import StreamedLogprobs, completion_logprobs
from longspan.entrypoints.openai.protocol import CompletionRequest
from longspan.entrypoints.openai.requests import endpoint
from longspan.entrypoints.openai.responses import CompletionAnswer, CompletionChoice
from longspan.metrics.prometheus import Arrival


def completions_router(context: Context) -> APIRouter:
    return endpoint(
        context, "/v1/completions", "create_completion", CompletionRequest, CompletionAnswer, CompletionAnswer, _answer
    )


async def _answer(context: Context, body: CompletionRequest, arrival: Arrival, request_id: str) -> Response:
    check_servable(context, body.model)
    check_choices(context.engine, body.choices_per_prompt * len(body.prompt), body.choices_name)
    params = body.sampling_params(context.engine.default_sampling, max_tokens=body.max_tokens, logprobs=body.logprobs)
    prompts = await _token_ids(context, body)
    engine = context.engine
    whole = CompletionAnswer(f"cmpl-{request_id}", int(time.time()), engine.model_name, [], engine.fingerprint)
    jobs = make_jobs(context, arrival, whole.id, prompts, params, body.choices_per_prompt, Names("prompt"))
    usage = UsageCount(prompts)
    if body.stream:
        events = _stream(context, body, arrival, whole, jobs, usage)
        return await sse.open_event_stream(context, events)
    return await _whole(context, body, arrival, whole, jobs, usage)


async def _token_ids(context: Context, body: CompletionRequest) -> Sequence[TokenIds]:
    texts = [prompt for prompt in body.prompt if isinstance(prompt, str)]
    return await context.texts.encode(texts, body.add_special_tokens) if texts else body.prompt


async def _whole(
    context: Context, body: CompletionRequest, arrival: Arrival, whole: CompletionAnswer, jobs: Sequence[Job],
    usage: UsageCount,
) -> Response:  # fmt: skip
    whole.choices = [
        CompletionChoice(
            index=index,
            text=choice.text,
            logprobs=None if body.logprobs is None else completion_logprobs(choice.logprobs, len(choice.text)),
            finish_reason=choice.finish_reason,
            stop_reason=choice.stop_reason,
        )
        for index, choice in enumerate(await collect(context, arrival, jobs, usage))
    ]
    whole.usage = usage.usage()
    return Response(msgspec.json.encode(whole), media_type="application/json")


async def _stream(
    context: Context, body: CompletionRequest, arrival: Arrival, chunk: CompletionAnswer, jobs: Sequence[Job],
    usage: UsageCount,
) -> AsyncGenerator[bytes, None]:  # fmt: skip
    """One chunk for each engine output; as in vLLM also when a token gave no text: clients count them."""
    options = body.usage_options
    chunk.usage = None if options.include_usage else UNSET
    logprobs = [StreamedLogprobs() for _ in jobs] if body.logprobs is not None else []
    async with aclosing(run(context, arrival, jobs)) as outputs:
        async for job, output in outputs:
            usage.add(output)
            choice = CompletionChoice(job.index, output.text, None, output.finish_reason)
            if output.finished:
                choice.stop_reason = output.stop_reason
            if logprobs:
                choice.logprobs = logprobs[job.index].push(output)
            chunk.choices = [choice]
            if options.continuous_usage_stats:
                chunk.usage = usage.usage()
            yield sse.event(chunk)
    if options.include_usage:
        chunk.choices = []
        chunk.usage = usage.usage()
        yield sse.event(chunk)
    yield sse.DONE
