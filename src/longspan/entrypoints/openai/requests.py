"""From a client's call to its checked request, and to its answer or its one end."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from fastapi import Request, Response

from longspan.entrypoints.openai.body import Body, read_body
from longspan.entrypoints.openai.context import Context
from longspan.entrypoints.openai.decoding import LARGE_BODY
from longspan.entrypoints.openai.disconnect import unless_disconnected
from longspan.entrypoints.openai.errors import ending
from longspan.entrypoints.openai.protocol import SamplingFields
from longspan.metrics.prometheus import Arrival

R = TypeVar("R", bound=SamplingFields)


async def answer(
    context: Context, request: Request, kind: type[R], work: Callable[[R, Arrival], Awaitable[Response]]
) -> Response:
    """The response that `work` makes of the request in the body. Raises what the client is to be told."""
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
