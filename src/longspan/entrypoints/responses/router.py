"""POST /v1/responses, as OpenAI has it; what is done with a response afterwards is in `kept.py`."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from contextlib import aclosing

import msgspec
from fastapi import APIRouter, Response

from longspan.entrypoints.openai import sse
from longspan.entrypoints.openai.answers import ProgressEvent
from longspan.entrypoints.openai.blocks import BlockReader
from longspan.entrypoints.openai.chat_run import begin_chat
from longspan.entrypoints.openai.context import Context
from longspan.entrypoints.openai.errors import ErrorAnswer
from longspan.entrypoints.openai.generation import check_servable
from longspan.entrypoints.openai.progress import ProgressNews, estimate_headers
from longspan.entrypoints.openai.requests import endpoint
from longspan.entrypoints.openai.tenants import owner_of_request
from longspan.entrypoints.responses import answers
from longspan.entrypoints.responses.answering import Answering, Keeper
from longspan.entrypoints.responses.background import Background
from longspan.entrypoints.responses.events import EventWriter, Items
from longspan.entrypoints.responses.kept import Kept, add_routes
from longspan.entrypoints.responses.object import begun, fail
from longspan.entrypoints.responses.request import ResponsesRequest
from longspan.errors import RequestError
from longspan.metrics.prometheus import Arrival

_ODD = re.compile(r"[^A-Za-z0-9_.~-]")  # in a request id: not for a path


def responses_router(context: Context) -> APIRouter:
    keeper = Keeper(context)
    context.metrics.watch_responses(keeper.store)
    background = Background(keeper, context.metrics)

    async def create(context: Context, body: ResponsesRequest, arrival: Arrival, request_id: str) -> Response:
        return await _create(context, keeper, background, body, arrival, request_id)

    router = endpoint(
        context, "/v1/responses", "create_response", ResponsesRequest, answers.ResponseObject, answers.StreamEvent,
        create,
    )  # fmt: skip
    add_routes(router, Kept(keeper, background))
    return router


async def _create(
    context: Context, keeper: Keeper, background: Background, body: ResponsesRequest, arrival: Arrival, request_id: str
) -> Response:
    check_servable(context, body.model)
    if body.background and not keeper.keeps:
        raise RequestError("background is not supported: this server keeps no responses (--stored-responses 0)",
                           param="background", code="unsupported_parameter")  # fmt: skip
    engine = context.engine
    owner = owner_of_request()
    before = None if body.previous_response_id is None else keeper.turn(owner, body.previous_response_id)
    items = [] if before is None else await keeper.conversation(before)
    task = body.task(items, engine.default_sampling, engine.tokenizer.chat_format.thinks)
    run = await begin_chat(context, task, arrival, f"resp_{_ODD.sub('_', request_id)}")
    response = begun(run.run_id, engine.model_name, body, task.params, keeps=keeper.keeps)
    reader = BlockReader(run, never_empty=True)
    answering = Answering(owner, body.input, before, response, reader, Items(reader))
    if body.stream:
        return await _stream(context, keeper, answering, bool(body.progress))
    if body.background:
        await background.start(answering)
        data = msgspec.json.encode(response)
    else:
        await answering.read_all()
        data = keeper.keep(answering)
    return Response(data, headers=estimate_headers(engine, run.jobs), media_type="application/json")


async def _stream(context: Context, keeper: Keeper, answering: Answering, tells_progress: bool) -> Response:
    response, run = answering.response, answering.reader.run
    writer = EventWriter(answering.items)
    progress = None
    if tells_progress:
        progress = ProgressNews(
            context.engine, run.jobs, context.pace, lambda news: sse.tagged_event(ProgressEvent(news))
        )

    def failed(answer: ErrorAnswer) -> bytes:
        fail(response, answer)
        told = answers.StreamError(code=answer.code, message=answer.shown, param=answer.param)
        return writer.write(told) + writer.write(answers.Failed(response=response))

    begin = writer.write(answers.Created(response=response)) + writer.write(answers.InProgress(response=response))
    events = _events(keeper, answering, writer)
    return await sse.open_event_stream(context, events, run.jobs, progress, sse.Wire(failed, begin))


async def _events(keeper: Keeper, answering: Answering, writer: EventWriter) -> AsyncGenerator[bytes, None]:
    async with aclosing(answering.steps()) as steps:
        async for step in steps:
            yield writer.of_step(step)
    keeper.keep(answering)
    response = answering.response
    last = answers.Completed if response.status == "completed" else answers.Incomplete
    yield writer.write(last(response=response))
