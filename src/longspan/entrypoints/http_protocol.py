"""HTTP/1.1 on one connection, bounded where uvicorn leaves it open: bytes, time, connections, pipelined requests.

Whatever a client sends gets an answer in its API's shape or a closed connection, and costs a bounded amount of both
memory and time. Where a refused client still sends, what it sends is dropped for a while before the connection is
closed: a connection closed with unread data may cost the client the answer.
"""

from __future__ import annotations

import asyncio
import logging
import time
from functools import partial
from typing import Any, cast

import httptools
import uvicorn
from starlette.types import Scope
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from longspan.entrypoints.http_body_pace import BodyPace
from longspan.entrypoints.http_connections import Connections, Phase
from longspan.entrypoints.http_flow import PUSH, Answer, Flow, Unread, disconnect, push, receive_or_refuse
from longspan.entrypoints.http_head import check_head, headers_too_large, without_upgrade
from longspan.entrypoints.http_refusals import RefusedError, answer_to, as_http, malformed, timed_out
from longspan.entrypoints.openai.errors import ErrorAnswer, overloaded
from longspan.entrypoints.openai.request_id import assign_request_id

logger = logging.getLogger("longspan.server")

SLICE = 8192  # bytes given to the parser at once
TURN_S = 0.005  # how long one connection may be parsed before others have their turn
MAX_UNFED = 65536  # bytes that may wait behind a request that is not answered yet


class BoundedHTTP(HttpToolsProtocol):
    """One connection. `cycle` is the request that was parsed last, `running` the one that is being answered."""

    flow: Flow

    def __init__(
        self, *, connections: Connections, config: uvicorn.Config, server_state: ServerState, app_state: dict[str, Any]
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
        self.dropped_bytes = 0
        self.pace = BodyPace(self.limits)
        self.unread = Unread()

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
                disconnect(cycle)
        self.pipeline.clear()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def make_room(self) -> None:
        """Close this idle connection because another one needs its place."""
        if self.phase is Phase.HEADERS:
            message = "this server has too many connections to wait for the rest of this request; try again"
            self._send_refusal(overloaded(message, self.others.departures.after_s()))
        self._stop_parsing()
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            self.transport.close()

    def check(self, now: float) -> None:
        """Ends the connection if its client has taken too long."""
        unwritten = self.transport.get_write_buffer_size()
        waited = now - self.since
        if self.unread.since(unwritten, now) > self.limits.write_s:
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
                self.refuse(timed_out(message))

    def _check_body(self, now: float) -> None:
        if self.running is None:  # answered already
            if now - self.since > self.limits.body_s:
                self.transport.abort()
            return
        if self.running is not self.cycle or self.flow.read_paused:  # it is we who let it wait
            self.pace.start_window(now)
        elif self.pace.is_too_slow(now):
            self.refuse(timed_out("the request's body comes too slowly; send it again"))

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
            self.refuse(malformed("too much was sent behind a request that is not answered yet"))
        if not self.transport.is_closing():
            self.flow.hold(bool(self.unfed) or self.refusal is not None)

    def _parse(self, piece: memoryview) -> None:
        progress = self.pace.num_bytes
        try:
            self.parser.feed_data(piece)
        except httptools.HttpParserUpgrade as upgrade:
            (parsed,) = upgrade.args
            self._go_on_without_upgrade(piece[parsed:])
        except httptools.HttpParserError as error:
            self.refuse(answer_to(error))
            return
        if self.phase is Phase.HEADERS:
            self.header_bytes += len(piece)
            if self.header_bytes > self.limits.header_bytes:
                self.refuse(headers_too_large(self.limits))
        elif self.phase is Phase.BODY:
            self.pace.framing = self.pace.framing + len(piece) if self.pace.num_bytes == progress else 0
            if self.pace.framing > self.limits.header_bytes:
                self.refuse(headers_too_large(self.limits))

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.phase = Phase.HEADERS
        self.header_bytes = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.phase is Phase.BODY:  # a trailer: nobody reads them
            return
        if len(self.headers) >= self.limits.headers:
            raise RefusedError(headers_too_large(self.limits))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        check_head(self.parser, self.url, self.headers, self.limits)
        if self.parser.should_upgrade():
            self.upgrading = True
            return
        self.phase = Phase.BODY
        self.pace.framing = 0
        self.others.work(self)
        super().on_headers_complete()
        if self.expect_100_continue:
            self.cycle.keep_alive = False  # a client that is refused need not send its body, nor say so

    def on_body(self, body: bytes) -> None:
        self.pace.take(len(body), self.loop.time())
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
            self.others.rest(self)

    def _go_on_without_upgrade(self, rest: memoryview) -> None:
        """Parses a request that offers to upgrade as if it did not, which it must be ready for.

        The parser would lose its body: clients that prefer HTTP/2 offer that with every first request.
        """
        self.upgrading = False
        head = without_upgrade(self.parser, self.url, self.headers)
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
        self.unfed = memoryview(b"".join([head, rest, self.unfed]))

    def _drop(self, size: int) -> None:
        self.dropped_bytes += size
        if self.dropped_bytes > self.limits.drop_bytes:
            self.transport.abort()

    # -- what goes

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self.running = cycle
        self.pace.start_window(self.loop.time())
        answer = Answer(self.transport, lambda: self.phase is Phase.CLOSING, self.finish)
        cycle.transport = cast(asyncio.Transport, answer)
        cast(dict[str, Any], cycle.scope).setdefault("extensions", {})[PUSH] = partial(push, cycle)
        cycle.receive = receive_or_refuse(cycle, lambda: self.refusal)  # type: ignore[method-assign]  # of this one
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
            self.others.rest(self)

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
                disconnect(running)
                self.finish()
            else:
                running.message_event.set()  # it answers

    def _send_refusal(self, answer: ErrorAnswer) -> None:
        scope = cast(Scope, self.scope) if self.phase is not Phase.IDLE else {"headers": []}
        assign_request_id(scope)
        self.others.on_refused(scope, answer)
        if not self.transport.is_closing():
            self.transport.write(as_http(answer, scope, self.server_state.default_headers))

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
            self.others.rest(self)
            if self.transport.can_write_eof():
                self.transport.write_eof()
