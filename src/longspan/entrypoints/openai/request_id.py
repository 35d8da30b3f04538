"""X-Request-Id: the client's, or a new one; on every answer and line of the log, and part of the ids in answers and
event log."""

from __future__ import annotations

import re
from uuid import uuid4

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from longspan.entrypoints.openai.dialect import speaks_anthropic
from longspan.log_fields import answering

HEADER = "x-request-id"
ANTHROPIC_HEADER = "request-id"  # which its clients read
_KEY = "longspan.request_id"
_ACCEPTABLE = re.compile(rb"[\x21-\x7e]{1,128}")


class RequestIdMiddleware:
    """Header values that are long or not printable ASCII are replaced, never repeated."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        name = assign_request_id(scope)
        answering.set(name)  # until the end of the task, which is one answer's
        request_id = name.encode()
        names = (HEADER, ANTHROPIC_HEADER) if speaks_anthropic(scope["path"]) else (HEADER,)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *((name.encode(), request_id) for name in names)]
            await send(message)

        await self.app(scope, receive, send_with_id)


def assign_request_id(scope: Scope) -> str:
    """Return the id that the client gave to this request, or a new one; from now on `request_id_of` does, too."""
    if _KEY not in scope:
        given = dict(scope["headers"]).get(HEADER.encode(), b"")
        scope[_KEY] = given.decode() if _ACCEPTABLE.fullmatch(given) else uuid4().hex
    return request_id_of(scope)


def request_id_of(scope: Scope) -> str:
    request_id: str = scope.get(_KEY) or uuid4().hex
    return request_id
