"""What flows between a connection and the application: reading that pauses, and writing that may find it closed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from uvicorn._types import ASGIReceiveEvent
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from longspan.entrypoints.openai.errors import ErrorAnswer, Refusal


class Flow(FlowControl):
    """Nothing is read while the application is behind, or the parser."""

    def __init__(self, transport: asyncio.Transport) -> None:
        super().__init__(transport)
        self._app_behind = self._parser_behind = False

    def pause_reading(self) -> None:
        self._app_behind = True
        self._apply()

    def resume_reading(self) -> None:
        self._app_behind = False
        self._apply()

    def hold(self, behind: bool) -> None:
        self._parser_behind = behind
        self._apply()

    def _apply(self) -> None:
        if self._app_behind or self._parser_behind:
            super().pause_reading()
        else:
            super().resume_reading()


class Unread:
    """What a client has not taken yet of its answers."""

    def __init__(self) -> None:
        self._bytes, self._since = 0, 0.0

    def since(self, num_bytes: int, now: float) -> float:
        """Return for how many seconds it has been so much, without a byte taken. now: of the event loop's clock."""
        if num_bytes == 0 or num_bytes != self._bytes:
            self._bytes, self._since = num_bytes, now
        return now - self._since


class Answer:
    """The writer of a request's answer: the connection, but for how it is closed.

    is_over: whether the connection takes no more. finish: ends it once its client has stopped sending.
    """

    def __init__(self, transport: asyncio.Transport, is_over: Callable[[], bool], finish: Callable[[], None]) -> None:
        self._transport = transport
        self._is_over = is_over
        self._finish = finish

    def write(self, data: bytes) -> None:
        if not self.is_closing():  # its client may just have left: uvloop raises then, and tells later
            self._transport.write(data)

    def close(self) -> None:
        if not self._is_over():
            self._finish()

    def is_closing(self) -> bool:
        return self._is_over() or self._transport.is_closing()


PUSH = "longspan.push"
"""The extension of an ASGI scope that writes a part of an answer at once."""


def push(cycle: RequestResponseCycle, data: bytes) -> bool:
    """Write a part of an answer that has begun, unless its client has yet to read what came before; tells whether it
    was written. What many are told at once costs little so, without a step of each one's task."""
    if cycle.flow.write_paused or cycle.disconnected or cycle.response_complete or not cycle.chunked_encoding:
        return False
    cycle.transport.write(b"%x\r\n%b\r\n" % (len(data), data))
    return True


def receive_or_refuse(
    cycle: RequestResponseCycle, refusal: Callable[[], ErrorAnswer | None]
) -> Callable[[], Coroutine[Any, Any, ASGIReceiveEvent]]:
    """Return what gives the application a request's body. It raises the refusal once there is one, for then what was
    wrong is in this request's own body."""
    receive = cycle.receive

    async def receive_next() -> ASGIReceiveEvent:
        message = await receive()
        answer = refusal()
        if answer is not None and cycle.more_body:
            raise Refusal(answer)
        return message

    return receive_next


def disconnect(cycle: RequestResponseCycle) -> None:
    """Tell the application that its client has left."""
    cycle.disconnected = True
    cycle.message_event.set()
