"""One line for each request. Neither bodies nor queries nor keys are in it."""

from __future__ import annotations

import logging
from functools import partial

from starlette.types import ASGIApp, Receive, Scope, Send

from longspan.entrypoints.logs import ACCESS
from longspan.entrypoints.openai.answered import look_on
from longspan.entrypoints.openai.request_id import request_id_of
from longspan.log_fields import fields

logger = logging.getLogger(ACCESS)

MAX_PATH = 200  # bytes of it that are shown


class AccessLogMiddleware:
    """Logs a request when it has been answered, or its client has left."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not logger.isEnabledFor(logging.INFO):
            await self.app(scope, receive, send)
            return
        await look_on(self.app, scope, receive, send, partial(log_access, scope))


def log_access(scope: Scope, status: int, seconds: float | None = None) -> None:
    """Log one answer. `scope` may be that of a request that could not be read; then only what is known is told."""
    if not logger.isEnabledFor(logging.INFO):
        return
    client = scope.get("client")
    told = {
        "client": f"{client[0]}:{client[1]}" if client else "-",
        "method": scope.get("method", "-"),
        "path": scope.get("raw_path", b"-")[:MAX_PATH].decode("ascii", "backslashreplace"),
        "status": status,
        "seconds": None if seconds is None else round(seconds, 6),
        "request_id": request_id_of(scope),
    }
    line = "%(client)s %(method)s %(path)s %(status)s %(seconds)s s, request %(request_id)s"
    logger.info(line, told, extra=fields(**told))
