"""Counts every answer of the application, by its path and status."""

from __future__ import annotations

from collections.abc import Iterable

from starlette.types import ASGIApp, Receive, Scope, Send

from longspan.entrypoints.openai.answered import look_on
from longspan.metrics.prometheus import HttpMetrics

NO_HANDLER = "none"
"""In place of a path that the server does not have, or that could not be read."""


class HttpMetricsMiddleware:
    """Sees an answer when it is complete, or its client has left (status 499). paths: those that the server has."""

    def __init__(self, app: ASGIApp, *, metrics: HttpMetrics, paths: Iterable[str]) -> None:
        self.app = app
        self.metrics = metrics
        self.paths = frozenset(paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        def answered(status: int, seconds: float) -> None:
            handler: str = scope["path"] if scope["path"] in self.paths else NO_HANDLER
            handler = getattr(scope.get("route"), "path", handler)  # one with parameters is one handler
            self.metrics.answered(handler, scope["method"], status, seconds)

        await look_on(self.app, scope, receive, send, answered)
