"""From a client's call to its checked request, and to its answer or its one end."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import msgspec
from fastapi import APIRouter, Request, Response

from longspan.entrypoints.openai.body import Body, read_body
from longspan.entrypoints.openai.context import Context
from longspan.entrypoints.openai.decoding import LARGE_BODY
from longspan.entrypoints.openai.disconnect import unless_disconnected
from longspan.entrypoints.openai.errors import ending
from longspan.entrypoints.openai.openapi import ERROR, Schema, operation
from longspan.entrypoints.openai.request_fields import RequestFields
from longspan.entrypoints.openai.request_id import request_id_of
from longspan.metrics.prometheus import Arrival

R = TypeVar("R", bound=RequestFields)


def endpoint(
    context: Context, path: str, name: str, kind: type[R], whole: type[msgspec.Struct], chunk: Any,
    work: Callable[[Context, R, Arrival, str], Awaitable[Response]], *, error: Schema = ERROR,
) -> APIRouter:  # fmt: skip
    """Make POST at `path`: what `work` makes of the context, the request, its arrival and its id.

    name: of the operation in /openapi.json. whole, chunk: what it answers with, at once or in a stream, None: it does
    not stream. error: the schema of its errors.
    """
    router = APIRouter()

    async def create(request: Request) -> Response:
        async def work_on(body: R, arrival: Arrival) -> Response:
            return await work(context, body, arrival, request_id_of(request.scope))

        return await answer(context, request, kind, work_on)

    # The first is called; the second is for /openapi.json: it would only add what FastAPI does about dependencies.
    router.add_route(path, create, methods=["POST"], include_in_schema=False)
    router.post(path, name=name, **operation(context, kind, whole, chunk, error))(create)
    return router


async def answer(
    context: Context, request: Request, kind: type[R], work: Callable[[R, Arrival], Awaitable[Response]]
) -> Response:
    """Return the response that `work` makes of the request in the body. Raises what the client is to be told."""
    arrival = context.metrics.arrive()
    try:
        bodies = [await read_body(request)]

        async def read_and_work() -> Response:
            given = await _read(context, bodies.pop(), request.headers.get("content-type", ""), kind)
            given.check()
            return await work(given, arrival)

        return await unless_disconnected(request.receive, read_and_work())
    except BaseException as error:
        arrival.end(ending(error))
        raise


async def _read(context: Context, body: Body, content_type: str, kind: type[R]) -> R:
    """What the body asks for. The body is released, also where nobody waits for that any more."""

    def read() -> R:
        try:
            return context.reader.read(body, content_type, kind)
        finally:
            body.release()

    return read() if len(body) <= LARGE_BODY else await context.pool.run(lambda _: read(), len(body))
