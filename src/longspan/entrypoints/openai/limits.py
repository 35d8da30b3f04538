"""What a request may not exceed: bytes of its body, and choices. The engine checks its length."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from longspan.engine.protocol import EngineClient
from longspan.entrypoints.openai.errors import BodyTooLargeError, refuse
from longspan.errors import RequestError
from longspan.metrics.prometheus import ServerMetrics


class BodyLimitMiddleware:
    """Status 413 beyond `limit` bytes, told by Content-Length or, without one, counted as they come.

    What is left of a refused body is read and dropped, up to `limit` bytes more, because most clients look at
    the answer only after they sent everything. Then the connection is closed.
    """

    def __init__(self, app: ASGIApp, *, limit: int, metrics: ServerMetrics) -> None:
        self.app = app
        self.limit = limit
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        if int(headers.get(b"content-length", b"0")) > self.limit:
            if b"expect" not in headers:  # a client that asks first has sent nothing yet
                await self._drop(receive)
            await refuse(self.metrics, BodyTooLargeError(self.limit)).response()(scope, receive, send)
            return
        received = 0

        async def counted_receive() -> Message:
            nonlocal received
            message = await receive()
            if message["type"] == "http.request":
                received += len(message.get("body", b""))
                if received > self.limit:
                    if message.get("more_body", False):
                        await self._drop(receive)
                    raise BodyTooLargeError(self.limit)
            return message

        await self.app(scope, counted_receive, send)

    async def _drop(self, receive: Receive) -> None:
        dropped = 0
        while dropped <= self.limit:
            message = await receive()
            dropped += len(message.get("body", b""))
            if message["type"] == "http.disconnect" or not message.get("more_body", False):
                return


def check_choices(engine: EngineClient, num_choices: int, param: str) -> None:
    """Raises RequestError for more choices than the queue could ever hold."""
    limit = engine.config.max_waiting
    if num_choices > limit:
        raise RequestError(f"{num_choices} choices were asked for, but at most {limit} can wait", param=param)
