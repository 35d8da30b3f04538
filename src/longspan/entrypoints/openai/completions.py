"""POST /v1/completions."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from secrets import token_hex

import msgspec
from fastapi import APIRouter, Response
from msgspec import UNSET

from longspan.engine.protocol import TokenIds
from longspan.entrypoints.openai import sse
from longspan.entrypoints.openai.answers import (
    CompletionAnswer,
    CompletionChoice,
    CompletionChunk,
    CompletionLogprobs,
)
from longspan.entrypoints.openai.context import Context
from longspan.entrypoints.openai.echo import Echo
from longspan.entrypoints.openai.generation import (
    Job,
    UsageCount,
    check_servable,
    collect,
    make_jobs,
    prepare,
    run,
)
from longspan.entrypoints.openai.limits import check_choices
from longspan.entrypoints.openai.logprobs import StreamedLogprobs
from longspan.entrypoints.openai.progress import ProgressNews, estimate_headers
from longspan.entrypoints.openai.protocol import CompletionRequest
from longspan.entrypoints.openai.request_fields import Names
from longspan.entrypoints.openai.requests import endpoint
from longspan.metrics.prometheus import Arrival
from longspan.outputs import RequestOutput


def completions_router(context: Context) -> APIRouter:
    return endpoint(
        context, "/v1/completions", "create_completion", CompletionRequest, CompletionAnswer, CompletionChunk, _answer
    )


async def _answer(context: Context, body: CompletionRequest, arrival: Arrival, request_id: str) -> Response:
    check_servable(context, body.model)
    check_choices(context.engine, body.choices_per_prompt * len(body.prompt), body.choices_name)
    structure = body.structure()
    params = body.params(context.engine.default_sampling, structure)
    await prepare(context, params, structure[0] if structure else None)
    prompts = await _token_ids(context, body)
    engine = context.engine
    whole = CompletionAnswer(f"cmpl-{request_id}", int(time.time()), engine.model_name, [], engine.fingerprint)
    run_id = f"{whole.id}-{token_hex(4)}"  # a client may use its X-Request-Id twice, the engine may not
    jobs = make_jobs(context, arrival, run_id, prompts, params, body.choices_per_prompt, Names("prompt"))
    usage = UsageCount(context, prompts, body.choices_per_prompt)
    echo = await Echo.of(context, body, prompts)
    if body.stream:
        chunk = CompletionChunk(whole.id, whole.created, engine.model_name, [], engine.fingerprint)
        progress = None
        if body.progress:
            progress = ProgressNews(engine, jobs, context.pace, lambda news: sse.progress_event(chunk, news))
        events = _stream(context, body, arrival, chunk, jobs, usage, echo)
        return await sse.open_event_stream(context, events, jobs, progress)
    return await _whole(context, arrival, whole, jobs, usage, echo)


async def _token_ids(context: Context, body: CompletionRequest) -> Sequence[TokenIds]:
    texts = [prompt for prompt in body.prompt if isinstance(prompt, str)]
    return await context.texts.encode(texts, body.add_special_tokens) if texts else body.prompt


async def _whole(
    context: Context, arrival: Arrival, whole: CompletionAnswer, jobs: Sequence[Job], usage: UsageCount, echo: Echo
) -> Response:
    texts = await collect(context, arrival, jobs, usage)
    if echo.only:
        usage.completion_tokens = 0
    whole.choices = [await echo.choice(index, text) for index, text in enumerate(texts)]
    whole.usage = usage.usage()
    headers = estimate_headers(context.engine, jobs)
    return Response(msgspec.json.encode(whole), headers=headers, media_type="application/json")


async def _stream(
    context: Context, body: CompletionRequest, arrival: Arrival, chunk: CompletionChunk, jobs: Sequence[Job],
    usage: UsageCount, echo: Echo,
) -> AsyncGenerator[bytes, None]:  # fmt: skip
    """One chunk for each engine output; as in vLLM also when a token gave no text: clients count them."""
    options = body.usage_options
    chunk.usage = None if options.include_usage else UNSET
    logprobs = [StreamedLogprobs() for _ in jobs] if body.logprobs is not None else []
    begun: set[int] = set()
    async with aclosing(run(context, arrival, jobs)) as outputs:
        async for job, made in outputs:
            output = echo.without_token(made)
            usage.add(job, output)
            before = "" if job.index in begun else echo.text(job.index)
            choice = CompletionChoice(job.index, before + output.text, None, output.finish_reason)
            if output.finished:
                choice.stop_reason = output.stop_reason
            if logprobs:
                choice.logprobs = await _streamed(echo, job.index, logprobs[job.index].push(output), output)
            begun.add(job.index)
            chunk.choices = [choice]
            if options.continuous_usage_stats:
                chunk.usage = usage.usage()
            yield sse.event(chunk)
    if options.include_usage:
        chunk.choices = []
        chunk.usage = usage.usage()
        yield sse.event(chunk)
    yield sse.DONE


async def _streamed(
    echo: Echo, index: int, found: CompletionLogprobs | None, output: RequestOutput
) -> CompletionLogprobs | None:
    """Log-probabilities of one chunk; the first has the prompt's, too, if that is part of the answer."""
    if output.prompt_logprobs is not None:
        return await echo.logprobs(index, output.prompt_logprobs, found)
    if found is not None:
        found.text_offset = [len(echo.text(index)) + offset for offset in found.text_offset]
    return found
