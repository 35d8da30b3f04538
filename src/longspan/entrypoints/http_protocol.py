"""HTTP/1.1 on one connection, bounded where uvicorn leaves it open: bytes, time, connections, pipelined requests.

Whatever a client sends gets an answer in OpenAI's shape or a closed connection, and costs a bounded amount of both
memory and time. Where a refused client still sends, what it sends is dropped for a while before the connection is
closed: a connection closed with unread data may cost the client the answer.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, cast

import httptools
import uvicorn
from starlette.types import Scope
from uvicorn._types import ASGI3Application, ASGIReceiveEvent
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from longspan.entrypoints.openai.errors import ErrorAnswer, Refusal, overloaded
from longspan.entrypoints.openai.request_id import HEADER as REQUEST_ID_HEADER
from longspan.entrypoints.openai.request_id import assign_request_id

logger = logging.getLogger("longspan.server")

SLICE = 8192  # bytes given to the parser at once
TURN_S = 0.005  # how long one connection may be parsed before others have their turn
MAX_UNFED = 65536  # bytes that may wait behind a request that is not answered yet
CLOSE = {"connection": "close"}

OnRefused = Callable[[Scope, ErrorAnswer], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLimits:
    """What one connection, and all together, may cost. Sizes in bytes, times in seconds.

    headers: how many, of one request.
    header_s: from a connection's or a request's first moment until its headers are complete.
    body_s: how long a body may make no progress, and the window in which it must come at `body_rate` bytes a second.
    drop_bytes: how much is dropped of what a client goes on to send when its request has been answered already.
    write_s: how long a client may not read what was sent to it.
    """

    connections: int = 2048
    header_bytes: int = 65536
    headers: int = 100
    header_s: float = 30.0
    body_s: float = 30.0
    body_rate: float = 1024.0
    drop_bytes: int = 64 * 1024 * 1024
    write_s: float = 60.0

    @property
    def sweep_s(self) -> float:
        return min(1.0, self.header_s / 4, self.body_s / 4, self.write_s / 4)


class Connections:
    """The connections of one server: which may be closed for a new one, and whose time is up."""

    def __init__(self, limits: ConnectionLimits, on_refused: OnRefused) -> None:
        self.limits = limits
        self.on_refused = on_refused
        self.all: set[BoundedHTTP] = set()
        self.idle: dict[BoundedHTTP, None] = {}  # without a request at work, the longest first
        self._next_sweep = 0.0

    def add(self, new: BoundedHTTP) -> None:
        """Takes in a new connection, at the cost of those that have been idle longest if there are too many."""
        self.all.add(new)
        while len(self.all) > self.limits.connections and self.idle:
            longest = next(iter(self.idle))
            self.remove(longest)
            longest.make_room()
        if len(self.all) > self.limits.connections:
            message = f"this server has {self.limits.connections} connections already; try again"
            new.refuse(overloaded(message))
        else:
            self.idle[new] = None

    def remove(self, connection: BoundedHTTP) -> None:
        self.all.discard(connection)
        self.idle.pop(connection, None)

    def sweep(self, now: float) -> None:
        """End what has taken too long. Cheap enough to be called often: it looks only every `sweep_s`."""
        if now < self._next_sweep:
            return
        self._next_sweep = now + self.limits.sweep_s
        for connection in list(self.all):
            try:
                connection.check(now)
            except Exception:
                logger.exception("a connection could not be looked after, and is cut")
                connection.transport.abort()


class Phase(Enum):
    """The part of a request that a connection expects next."""

    IDLE = auto()
    HEADERS = auto()
    BODY = auto()
    CLOSING = auto()  # nothing: what comes is dropped


class BoundedHTTP(HttpToolsProtocol):
    """One connection. `cycle` is the request that was parsed last, `running` the one that is being answered."""

    flow: Flow

    def __init__(
        self,
        *,
        connections: Connections,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
    ) -> None:
        super().__init__(config, server_state, app_state)
        self.others = connections
        self.limits = connections.limits
        self.phase = Phase.IDLE
        self.running: RequestResponseCycle | None = None
        self.unfed = memoryview(b"")  # came, but is not parsed yet
        self.next_turn: asyncio.Handle | None = None
        self.upgrading = False
        self.refusal: ErrorAnswer | None = None  # to be sent when what came before it has been answered
        self.since = 0.0  # this wait began: for headers, for the client to stop sending, or to close
        self.header_bytes = 0
        self.framing_bytes = 0  # of a body since its last piece
        self.dropped_bytes = 0
        self.window_start = self.last_progress = 0.0
        self.window_bytes = 0
        self.unwritten = (0, 0.0)  # bytes that the client has not taken yet, and since when it is so many

    # -- the connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        super().connection_made(transport)
        self.flow = Flow(transport)
        self.since = self.loop.time()
        self.others.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.others.remove(self)
        self.unfed = memoryview(b"")
        for cycle in [self.running, *(cycle for cycle, _ in self.pipeline)]:
            if cycle is not None and not cycle.response_complete:
                _disconnect(cycle)
        self.pipeline.clear()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def make_room(self) -> None:
        """Close this idle connection because another one needs its place."""
        if self.phase is Phase.HEADERS:
            message = "this server has too many connections to wait for the rest of this request; try again"
            self._send_refusal(overloaded(message))
        self._stop_parsing()
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            self.transport.close()

    def check(self, now: float) -> None:
        """Ends the connection if its client has taken too long."""
        unwritten = self.transport.get_write_buffer_size()
        waited = now - self.since
        if unwritten == 0 or unwritten != self.unwritten[0]:
            self.unwritten = (unwritten, now)
        elif now - self.unwritten[1] > self.limits.write_s:
            logger.debug("a client read nothing for %g s", self.limits.write_s)
            self.transport.abort()
            return
        if self.phase is Phase.CLOSING or self.transport.is_closing():
            if unwritten == 0 and waited > self.limits.body_s:
                self.transport.abort()
        elif self.phase is Phase.BODY:
            self._check_body(now)
        elif self.running is None and waited > self.limits.header_s and self.timeout_keep_alive_task is None:
            if self.phase is Phase.IDLE and self.cycle is not None:  # between requests
                self.transport.close()
            else:
                message = f"the request's headers were not complete after {self.limits.header_s:g} s"
                self.refuse(_timed_out(message))

    def _check_body(self, now: float) -> None:
        if self.running is None:  # answered already
            if now - self.since > self.limits.body_s:
                self.transport.abort()
            return
        if self.running is not self.cycle or self.flow.read_paused:  # it is we who let it wait
            self._start_window(now)
            return
        window = now - self.window_start
        slow = window >= self.limits.body_s and self.window_bytes < self.limits.body_rate * window
        if slow or now - self.last_progress > self.limits.body_s:
            self.refuse(_timed_out("the request's body comes too slowly; send it again"))
        elif window >= self.limits.body_s:
            self._start_window(now)

    def _start_window(self, now: float) -> None:
        self.window_start = self.last_progress = now
        self.window_bytes = 0

    # -- what comes

    def data_received(self, data: bytes) -> None:
        if self.phase is Phase.CLOSING:
            self._drop(len(data))
            return
        if self.phase is Phase.IDLE and self.timeout_keep_alive_task is not None:
            self.since = self.loop.time()
        self._unset_keepalive_if_required()
        if self.refusal is None:
            self.unfed = memoryview(bytes(self.unfed) + data if self.unfed else data)
            self._feed()

    def _feed(self) -> None:
        """Parses what came: not more than a turn at once, and nothing behind a request that waits for its turn."""
        self.next_turn = None
        until = time.perf_counter() + TURN_S
        while self.unfed and not self.pipeline and self.refusal is None and self.phase is not Phase.CLOSING:
            if time.perf_counter() > until:
                self.next_turn = self.loop.call_soon(self._feed)
                break
            piece, self.unfed = self.unfed[:SLICE], self.unfed[SLICE:]
            self._parse(piece)
        if self.pipeline and len(self.unfed) > MAX_UNFED:
            self.refuse(_malformed("too much was sent behind a request that is not answered yet"))
        if not self.transport.is_closing():
            self.flow.hold(bool(self.unfed) or self.refusal is not None)

    def _parse(self, piece: memoryview) -> None:
        progress = self.window_bytes
        try:
            self.parser.feed_data(piece)
        except httptools.HttpParserUpgrade as upgrade:
            (parsed,) = upgrade.args
            self._go_on_without_upgrade(piece[parsed:])
        except httptools.HttpParserError as error:
            self.refuse(_answer_to(error))
            return
        if self.phase is Phase.HEADERS:
            self.header_bytes += len(piece)
            if self.header_bytes > self.limits.header_bytes:
                self.refuse(self._headers_too_large())
        elif self.phase is Phase.BODY:
            self.framing_bytes = self.framing_bytes + len(piece) if self.window_bytes == progress else 0
            if self.framing_bytes > self.limits.header_bytes:
                self.refuse(self._headers_too_large())

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.phase = Phase.HEADERS
        self.header_bytes = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.phase is Phase.BODY:  # a trailer: nobody reads them
            return
        if len(self.headers) >= self.limits.headers:
            raise _RefusedError(self._headers_too_large())
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self.parser.get_method() == b"CONNECT":
            answer = ErrorAnswer(
                405, "method not allowed: CONNECT", "invalid_request_error", None, "method_not_allowed"
            )
            raise _RefusedError(answer)
        version = self.parser.get_http_version()
        if version not in ("1.0", "1.1"):
            raise _RefusedError(_malformed(f"HTTP/{version} is not spoken here, HTTP/1.1 is"))
        if len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers) > self.limits.header_bytes:
            raise _RefusedError(self._headers_too_large())
        hosts = sum(name == b"host" for name, _ in self.headers)
        if hosts > 1 or (hosts == 0 and version == "1.1"):
            raise _RefusedError(_malformed("a request needs exactly one Host header"))
        if self.parser.should_upgrade():
            self.upgrading = True
            return
        self.phase = Phase.BODY
        self.framing_bytes = 0
        self.others.idle.pop(self, None)
        super().on_headers_complete()
        if self.expect_100_continue:
            self.cycle.keep_alive = False  # a client that is refused need not send its body, nor say so

    def on_body(self, body: bytes) -> None:
        self.window_bytes += len(body)
        self.last_progress = self.loop.time()
        if self.cycle.response_complete:
            self._drop(len(body))
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self.upgrading:
            return
        self.phase = Phase.IDLE
        super().on_message_complete()
        if self.running is None:  # what was answered before it came
            self.since = self.loop.time()
            self.others.idle[self] = None

    def _go_on_without_upgrade(self, rest: memoryview) -> None:
        """Parses a request that offers to upgrade as if it did not, which it must be ready for.

        The parser would lose its body: clients that prefer HTTP/2 offer that with every first request.
        """
        self.upgrading = False
        version = self.parser.get_http_version().encode()
        head = [self.parser.get_method(), b" ", self.url, b" HTTP/", version, b"\r\n"]
        head += [name + b": " + value + b"\r\n" for name, value in self.headers if name != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
        self.unfed = memoryview(b"".join([*head, b"\r\n", rest, self.unfed]))

    def _drop(self, size: int) -> None:
        self.dropped_bytes += size
        if self.dropped_bytes > self.limits.drop_bytes:
            self.transport.abort()

    # -- what goes

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self.running = cycle
        self._start_window(self.loop.time())
        cycle.transport = cast(asyncio.Transport, Answer(self))
        receive = cycle.receive

        async def receive_or_refuse() -> ASGIReceiveEvent:
            message = await receive()
            if self.refusal is not None and cycle.more_body:  # what was wrong is in this request's own body
                raise Refusal(self.refusal)
            return message

        cycle.receive = receive_or_refuse  # type: ignore[method-assign]  # of this one request
        if self.refusal is not None:
            cycle.message_event.set()  # no more of it will come
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        answered, self.running = self.running, None
        self.dropped_bytes = 0
        if self.phase is Phase.CLOSING:
            self.server_state.total_requests += 1
            return
        self.since = self.loop.time()
        super().on_response_complete()  # starts the next, if one waits
        if self.unfed and not self.pipeline and self.next_turn is None:
            self.next_turn = self.loop.call_soon(self._feed)
        if self.running is not None or self.transport.is_closing():
            return
        if self.refusal is not None:
            if answered is None or not answered.more_body:
                self._send_refusal(self.refusal)
            self.finish()
            return
        if self.phase is not Phase.BODY:
            self.others.idle[self] = None

    def refuse(self, answer: ErrorAnswer) -> None:
        """Answer what cannot be read, behind the answers to what came before it, and close the connection."""
        self._unset_keepalive_if_required()
        running = self.running
        if running is None:
            self._send_refusal(answer)
            self._close_when_silent()
            return
        self.refusal = answer
        self.unfed = memoryview(b"")
        if running.more_body:
            if running.response_started:
                _disconnect(running)
                self.finish()
            else:
                running.message_event.set()  # it answers

    def _send_refusal(self, answer: ErrorAnswer) -> None:
        scope = cast(Scope, self.scope) if self.phase is not Phase.IDLE else {"headers": []}
        request_id = assign_request_id(scope)
        self.others.on_refused(scope, answer)
        body = answer.json()
        headers = {
            REQUEST_ID_HEADER: request_id,
            "content-type": "application/json",
            "content-length": str(len(body)),
            **answer.headers,
            **CLOSE,
        }
        lines = [STATUS_LINE[answer.status]]
        lines += [name + b": " + value + b"\r\n" for name, value in self.server_state.default_headers]
        lines += [f"{name}: {value}\r\n".encode() for name, value in headers.items()]
        if not self.transport.is_closing():
            self.transport.write(b"".join([*lines, b"\r\n", body]))

    def finish(self) -> None:
        """Closes the connection, once its client has stopped sending."""
        if self.phase is not Phase.IDLE:
            self._close_when_silent()
            return
        self._stop_parsing()
        self.transport.close()

    def _stop_parsing(self) -> None:
        self.phase = Phase.CLOSING
        self.since = self.loop.time()
        self.unfed = memoryview(b"")
        self.pipeline.clear()

    def _close_when_silent(self) -> None:
        self._stop_parsing()
        if not self.transport.is_closing():
            self.flow.hold(False)
            self.flow.resume_reading()
            self.others.idle[self] = None
            if self.transport.can_write_eof():
                self.transport.write_eof()

    def _headers_too_large(self) -> ErrorAnswer:
        message = (
            f"the request line and headers are larger than {self.limits.header_bytes} bytes, "
            f"or more than {self.limits.headers}"
        )
        return ErrorAnswer(431, message, "invalid_request_error", None, "headers_too_large", CLOSE)


class Answer:
    """The writer of a request's answer: the connection, but for how it is closed."""

    def __init__(self, connection: BoundedHTTP) -> None:
        self.connection = connection

    def write(self, data: bytes) -> None:
        if not self.is_closing():  # its client may just have left: uvloop raises then, and tells later
            self.connection.transport.write(data)

    def close(self) -> None:
        if self.connection.phase is not Phase.CLOSING:
            self.connection.finish()

    def is_closing(self) -> bool:
        return self.connection.phase is Phase.CLOSING or self.connection.transport.is_closing()


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


class _RefusedError(Exception):
    """Raised where the parser calls us: it passes no other way out."""

    def __init__(self, answer: ErrorAnswer) -> None:
        super().__init__(answer.message)
        self.answer = answer


def _disconnect(cycle: RequestResponseCycle) -> None:
    cycle.disconnected = True
    cycle.message_event.set()


def _answer_to(error: httptools.HttpParserError) -> ErrorAnswer:
    cause = error.__context__
    if isinstance(cause, _RefusedError):
        return cause.answer
    return _malformed("its target cannot be read" if cause is not None else str(error))


def _malformed(reason: str) -> ErrorAnswer:
    message = f"what was sent is not an HTTP/1.1 request: {reason}"
    return ErrorAnswer(400, message, "invalid_request_error", None, "malformed_request", CLOSE)


def _timed_out(message: str) -> ErrorAnswer:
    return ErrorAnswer(408, message, "invalid_request_error", None, "request_timeout", CLOSE)
