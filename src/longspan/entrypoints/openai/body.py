"""A request's body: read within its own limit, and within what all bodies may have together."""

from __future__ import annotations

from contextlib import suppress

from starlette.requests import ClientDisconnect, Request

from longspan.engine.departures import Departures
from longspan.entrypoints.openai.errors import ClientDisconnectedError, ErrorAnswer, Refusal, overloaded

MIB = 1024 * 1024
SMALL = MIB  # bytes


class Bodies:
    """The bodies of one server that are being received or worked on.

    A quarter of the budget is left to small bodies, so that a few large ones do not shut out ordinary requests.
    """

    def __init__(self, *, limit: int, budget: int) -> None:
        self.limit = limit
        self.budget = budget
        self.held = 0
        self.departures = Departures()

    def check(self, size: int, more: int) -> None:
        """Raises Refusal if a body may not have `size` bytes, `more` of which are not held yet."""
        if size > self.limit:
            message = f"the request body is larger than {self.limit} bytes, which is this server's limit"
            raise Refusal(
                ErrorAnswer(413, message, "invalid_request_error", None, "request_too_large", {"connection": "close"})
            )
        lacking = self.held + more - (self.budget if size <= SMALL else self.budget * 3 // 4)
        if lacking > 0:
            message = "the server holds as many bytes of unfinished requests as it may; try again"
            raise Refusal(overloaded(message, self.departures.after_s(lacking)))

    def take(self, count: int) -> None:
        """So many bytes are held from now on."""
        if not self.held:
            self.departures.begin()
        self.held += count

    def give(self, count: int) -> None:
        """So many are held no more."""
        if count:
            self.held -= count
            self.departures.note(count)


class Body(bytearray):
    """A body as it was read. It counts against the budget until it is released, or freed since nothing uses it."""

    __slots__ = ("bodies", "charged")

    def __init__(self, bodies: Bodies) -> None:
        super().__init__()
        self.bodies = bodies
        self.charged = 0

    def take(self, piece: bytes) -> None:
        self.bodies.check(len(self) + len(piece), len(piece))
        self.bodies.take(len(piece))
        self.charged += len(piece)
        self += piece

    def release(self) -> None:
        """Forget what was read. An error's traceback may keep the body itself for long."""
        with suppress(BufferError):  # which may also keep what looked at it
            self.clear()
        self.bodies.give(self.charged)
        self.charged = 0

    def __del__(self) -> None:
        self.bodies.give(self.charged)


async def read_body(request: Request) -> Body:
    """Read the body's bytes, none of which have been looked at. What is refused is not kept.

    Raises:
        Refusal: it is too large (413), compressed (415), or there are too many at once (503).
        ClientDisconnectedError: the client left before its end.
    """
    bodies: Bodies = request.app.state.bodies
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        message = "compressed bodies are not read here; send the body without Content-Encoding"
        raise Refusal(ErrorAnswer(415, message, "invalid_request_error", None, "unsupported_content_encoding"))
    declared = int(request.headers.get("content-length", "0"))  # digits: the parser has seen to that
    bodies.check(declared, declared)
    body = Body(bodies)
    try:
        async for piece in request.stream():
            body.take(piece)
    except BaseException as error:
        body.release()
        if isinstance(error, ClientDisconnect):
            raise ClientDisconnectedError("the client closed the connection") from None
        raise
    return body
