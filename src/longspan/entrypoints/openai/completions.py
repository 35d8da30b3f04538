"""POST /v1/completions."""

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
from longspan.entrypoints.openai.logprobs import completion_logprobs
from longspan.entrypoints.openai.protocol import UNSUPPORTED_COMPLETION, CompletionRequest
from longspan.entrypoints.openai.request_id import request_id_of
from longspan.entrypoints.openai.responses import CompletionAnswer, CompletionChoice


def completions_router(context: Context) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/completions")
    async def create_completion(body: CompletionRequest, request: Request) -> Response:
        work = _answer(context, body, request_id_of(request.scope))
        return await unless_disconnected(request.receive, work)

    return router


async def _answer(context: Context, body: CompletionRequest, request_id: str) -> Response:
    body.check(UNSUPPORTED_COMPLETION)
    check_servable(context, body.model)
    params = body.sampling_params(max_tokens=body.max_tokens, logprobs=body.logprobs)
    prompts = await _token_ids(context, body)
    answer = CompletionAnswer(f"cmpl-{request_id}", int(time.time()), context.engine.model_name, [])
    jobs = make_jobs(context, answer.id, prompts, params, body.choices_per_prompt, "prompt")
    usage = UsageCount(prompts)
    if body.stream:
        events = _stream(context, body, answer, jobs, usage)
        return await sse.open_event_stream(context, events)
    return await _whole(context, body, answer, jobs, usage)


async def _token_ids(context: Context, body: CompletionRequest) -> Sequence[Sequence[int]]:
    texts = [prompt for prompt in body.prompt if isinstance(prompt, str)]
    if not texts:
        return [prompt for prompt in body.prompt if not isinstance(prompt, str)]
    tokenize = partial(context.engine.tokenizer.encode, add_special_tokens=body.add_special_tokens)
    return await encode(lambda: [tokenize(text) for text in texts], sum(map(len, texts)), "prompt")


async def _whole(
    context: Context,
    body: CompletionRequest,
    answer: CompletionAnswer,
    jobs: Sequence[Job],
    usage: UsageCount,
) -> Response:
    answer.choices = [
        CompletionChoice(
            index=index,
            text=choice.text,
            logprobs=None if body.logprobs is None else completion_logprobs(choice.logprobs, 0),
            finish_reason=choice.finish_reason,
            stop_reason=choice.stop_reason,
        )
        for index, choice in enumerate(await collect(context, jobs, usage))
    ]
    answer.usage = usage.usage()
    return Response(msgspec.json.encode(answer), media_type="application/json")


async def _stream(
    context: Context,
    body: CompletionRequest,
    answer: CompletionAnswer,
    jobs: Sequence[Job],
    usage: UsageCount,
) -> AsyncGenerator[bytes, None]:
    """One chunk for each engine output; as in vLLM also when a token gave no text: clients count them."""
    options = body.usage_options
    answer.usage = None if options.include_usage else UNSET
    offsets = [0] * len(jobs)
    async with aclosing(run(context, jobs)) as outputs:
        async for job, output in outputs:
            usage.add(output)
            choice = CompletionChoice(job.index, output.text, None, output.finish_reason)
            if output.finished:
                choice.stop_reason = output.stop_reason
            if output.logprobs is not None:
                choice.logprobs = completion_logprobs(output.logprobs, offsets[job.index])
                offsets[job.index] += sum(len(position.chosen.text) for position in output.logprobs)
            answer.choices = [choice]
            if options.continuous_usage_stats:
                answer.usage = usage.usage()
            yield sse.event(answer)
    if options.include_usage:
        answer.choices = []
        answer.usage = usage.usage()
        yield sse.event(answer)
    yield sse.DONE
