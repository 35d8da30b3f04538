"""Server-sent events: how a stream starts, goes on, fails and ends."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator

import msgspec
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from longspan.entrypoints.openai.context import Context
from longspan.entrypoints.openai.disconnect import unless_disconnected
from longspan.entrypoints.openai.errors import ClientDisconnectedError, refuse
from longspan.errors import LongspanError

logger = logging.getLogger("longspan.server")

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"
HEADERS_WITHIN_S = 1.0

_encode = msgspec.json.Encoder().encode


def event(chunk: msgspec.Struct) -> bytes:
    return b"data: " + _encode(chunk) + b"\n\n"


async def open_event_stream(context: Context, events: AsyncGenerator[bytes, None]) -> EventStream:
    """Return a response that sends `events`, and closes them when it ends or its client leaves.

    An error before the first event is raised here, and so gets its own status (429, 503 ...). But headers
    wait no longer than a second for an event that may be minutes away: a later error goes into the stream.
    """
    first = asyncio.ensure_future(anext(events))
    try:
        await asyncio.wait({first}, timeout=HEADERS_WITHIN_S)
        if first.done():
            first.result()
    except BaseException:
        await _cancel(first)
        raise
    return EventStream(context, first, events)


class EventStream(StreamingResponse):
    """A stream of events; `first` is the already running step to the first event of `events`."""

    media_type = "text/event-stream"

    def __init__(
        self, context: Context, first: asyncio.Future[bytes], events: AsyncGenerator[bytes, None]
    ) -> None:
        super().__init__(events, headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        self.first = first
        self.events = events
        self.context = context
        self.keep_alive_s = context.config.keep_alive_s
        self.sent = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await unless_disconnected(receive, self._send_all(send))
        except ClientDisconnectedError:
            logger.debug("client left a stream")
        finally:
            await _cancel(self.first)
            await self.events.aclose()

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        pulse = asyncio.create_task(self._keep_alive(send))
        try:
            await self._send(send, await self.first)
            async for data in self.events:
                await self._send(send, data)
        except Exception as error:  # the status is out: the stream must tell
            if not isinstance(error, LongspanError):
                logger.exception("a stream failed")
            await self._send(send, b"data: " + refuse(self.context.metrics, error).json() + b"\n\n" + DONE)
        finally:
            pulse.cancel()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send(self, send: Send, data: bytes) -> None:
        self.sent += 1
        await send({"type": "http.response.body", "body": data, "more_body": True})

    async def _keep_alive(self, send: Send) -> None:
        """A comment, which clients skip, whenever nothing was sent for a while."""
        while self.keep_alive_s > 0:
            sent = self.sent
            await asyncio.sleep(self.keep_alive_s)
            if self.sent == sent:
                await send({"type": "http.response.body", "body": KEEP_ALIVE, "more_body": True})


async def _cancel(future: asyncio.Future[bytes]) -> None:
    future.cancel()
    await asyncio.wait({future})
