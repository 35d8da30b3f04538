"""Server-sent events: how a stream starts, goes on, fails and ends."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass

import msgspec
from msgspec import UNSET
from msgspec.structs import replace
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from longspan.entrypoints.openai.answers import ChatChunk, ChoiceProgress, CompletionChunk
from longspan.entrypoints.openai.context import Context
from longspan.entrypoints.openai.disconnect import unless_disconnected
from longspan.entrypoints.openai.errors import ClientDisconnectedError, ErrorAnswer, refuse
from longspan.entrypoints.openai.generation import Job
from longspan.entrypoints.openai.progress import ProgressNews, estimate_headers
from longspan.errors import LongspanError

logger = logging.getLogger("longspan.server")

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"
HEADERS_WITHIN_S, _LOOK_AGAIN_S = 1.0, 0.005

_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Wire:
    """What one API's streams have beside their events.

    begin: what is sent with the headers, before all events. keep_alive: what is sent after a silence. error: what tells
    of an error, and ends the stream.
    """

    error: Callable[[ErrorAnswer], bytes]
    begin: bytes = b""
    keep_alive: bytes = KEEP_ALIVE


OPENAI = Wire(lambda answer: b"data: " + answer.json() + b"\n\n" + DONE)


def event(chunk: msgspec.Struct) -> bytes:
    return b"data: " + _encode(chunk) + b"\n\n"


def tagged_event(data: msgspec.Struct) -> bytes:
    """Return an event of a kind that clients know before they read it: the struct's tag."""
    return b"event: %s\ndata: %s\n\n" % (str(data.__struct_config__.tag).encode(), _encode(data))


def progress_event(chunk: ChatChunk | CompletionChunk, news: list[ChoiceProgress]) -> bytes:
    """Return the event that tells `news`, of the stream that has such chunks. It has no choices, so that clients that
    know nothing of it read on."""
    usage = UNSET if chunk.usage is UNSET else None
    return event(replace(chunk, choices=[], usage=usage, longspan_progress=news))


async def open_event_stream(
    context: Context, events: AsyncGenerator[bytes, None], jobs: Sequence[Job], progress: ProgressNews | None,
    wire: Wire = OPENAI,
) -> EventStream:  # fmt: skip
    """Return a response that sends `events`, and closes them when it ends or its client leaves.

    jobs: the choices that it is about. progress: what is told of them besides. wire: how. An error before the first
    event is raised here, and so gets its own status (429, 503 ...). But headers wait no longer than a second for an
    event that may be minutes away, and where progress is told no longer than until there is some: a later error goes
    into the stream.
    """
    first = asyncio.ensure_future(anext(events))
    try:
        await _first_event_or_news(first, context, jobs if progress is not None else ())
        if first.done():
            first.result()
    except BaseException:
        await _cancel(first)
        raise
    return EventStream(context, first, events, estimate_headers(context.engine, jobs), progress, wire)


class EventStream(StreamingResponse):
    """A stream of events; `first` is the already running step to the first event of `events`."""

    media_type = "text/event-stream"

    def __init__(
        self, context: Context, first: asyncio.Future[bytes], events: AsyncGenerator[bytes, None],
        headers: Mapping[str, str], progress: ProgressNews | None, wire: Wire,
    ) -> None:  # fmt: skip
        super().__init__(events, headers={"cache-control": "no-cache", "x-accel-buffering": "no", **headers})
        self.progress = progress
        self.wire = wire
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
        if self.wire.begin:
            await self._send(send, self.wire.begin)
        beside = [asyncio.create_task(self._keep_alive(send))]
        if self.progress is not None:
            beside.append(asyncio.create_task(self._tell_progress(send, self.progress)))
        try:
            await self._send(send, await self.first)
            async for data in self.events:
                await self._send(send, data)
        except Exception as error:  # the status is out: the stream must tell
            if not isinstance(error, LongspanError):
                logger.exception("a stream failed")
            await self._send(send, self.wire.error(refuse(self.context.metrics, error)))
        finally:
            for task in beside:
                task.cancel()
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
                await send({"type": "http.response.body", "body": self.wire.keep_alive, "more_body": True})

    async def _tell_progress(self, send: Send, progress: ProgressNews) -> None:
        """What has changed, now and then. A client that does not read is told nothing more: sending waits for it."""
        try:
            with progress.read():
                while True:
                    if (news := progress.take()) is not None:
                        await self._send(send, news)
                    await asyncio.sleep(progress.interval_s)
        except Exception:  # of the policy's estimates, at worst: the answer goes on
            logger.exception("the progress of a stream cannot be told")


async def _first_event_or_news(first: asyncio.Future[bytes], context: Context, jobs: Sequence[Job]) -> None:
    """Return when the event is there, the engine has all jobs and so has refused none, or HEADERS_WITHIN_S are over.

    jobs: to look out for; none: only the event is waited for.
    """
    left_s, wait_s = HEADERS_WITHIN_S, _LOOK_AGAIN_S if jobs else HEADERS_WITHIN_S
    while left_s > 0 and not first.done():
        await asyncio.wait({first}, timeout=min(wait_s, left_s))
        left_s, wait_s = left_s - wait_s, 2 * wait_s
        if jobs and all(context.engine.has(job.request_id) for job in jobs):
            return


async def _cancel(future: asyncio.Future[bytes]) -> None:
    future.cancel()
    await asyncio.wait({future})
