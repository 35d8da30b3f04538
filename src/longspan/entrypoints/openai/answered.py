"""What became of a request, for who only looks on: its status, and how long it took."""

from __future__ import annotations

import time
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

CLIENT_LEFT = 499
"""The status of a request whose client left before there was an answer."""


async def look_on(
    app: ASGIApp, scope: Scope, receive: Receive, send: Send, answered: Callable[[int, float], None]
) -> None:
    """Have the application answer a request. answered: is called with the status and the seconds, once the answer is
    complete, or has failed, or its client has left."""
    status = CLIENT_LEFT
    began = time.perf_counter()

    async def send_and_see(message: Message) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
        await send(message)

    try:
        await app(scope, receive, send_and_see)
    except Exception:
        status = 500
        raise
    finally:
        answered(status, time.perf_counter() - began)
