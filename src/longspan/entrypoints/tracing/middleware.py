"""Takes the trace that a request is part of from its headers."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from longspan.trace_context import HEADERS, trace_context

MOST_BYTES = 1024  # of such a header: the standard asks for 512


class TraceContextMiddleware:
    """What the headers say is believed only as far as it can be read, later, by who sends the trace."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            trace_context.set(
                {
                    name.decode(): value.decode("latin-1")
                    for name, value in scope["headers"]
                    if name.decode("latin-1") in HEADERS and len(value) <= MOST_BYTES
                }
            )
        await self.app(scope, receive, send)
