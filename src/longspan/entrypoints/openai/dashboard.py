"""GET / and /dashboard: a page that shows the fleet."""

from __future__ import annotations

from contextlib import suppress

from fastapi import APIRouter, Request, Response
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from longspan.entrypoints.dashboard.files import PageFiles
from longspan.entrypoints.dashboard.viewers import Viewers
from longspan.entrypoints.http_flow import PUSH
from longspan.entrypoints.openai.context import Context
from longspan.entrypoints.openai.disconnect import unless_disconnected
from longspan.entrypoints.openai.errors import ClientDisconnectedError
from longspan.entrypoints.openai.onlookers import require_onlooker
from longspan.errors import EngineDeadError

EVENTS = "/dashboard/events"


def dashboard_router(context: Context) -> APIRouter:
    router = APIRouter()
    page, viewers = PageFiles("live", context.config.has_keys), Viewers(context.engine)

    async def show(request: Request) -> Response:
        return page.answer(request)

    for path in sorted(page.paths):
        router.add_api_route(path, show, methods=["GET", "HEAD"], include_in_schema=False)

    @router.get(EVENTS, include_in_schema=False)
    async def events(request: Request) -> Response:
        """Frames as server-sent events; see `metrics.fleet.frames`."""
        require_onlooker(context, request)
        if context.engine.error is not None:
            raise EngineDeadError(f"the engine is dead: {context.engine.error}")
        return _Frames(viewers)

    return router


class _Frames(StreamingResponse):
    """What one viewer is told."""

    media_type = "text/event-stream"

    def __init__(self, viewers: Viewers) -> None:
        """Raises QueueFullError: too many look on."""
        self._viewers, self._viewer = viewers, viewers.join()
        super().__init__(self._viewer.frames(), headers={"cache-control": "no-store", "x-accel-buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._viewer.push = scope.get("extensions", {}).get(PUSH)
        try:
            with suppress(ClientDisconnectedError):
                await unless_disconnected(receive, self.stream_response(send))
        finally:
            self._viewers.leave(self._viewer)
