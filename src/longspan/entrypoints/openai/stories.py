"""GET /requests/{id}/story: what became of a request, and why."""

from __future__ import annotations

import msgspec
from fastapi import APIRouter, Request, Response

from longspan.entrypoints.openai.context import Context
from longspan.entrypoints.openai.errors import ErrorAnswer, Refusal
from longspan.entrypoints.openai.onlookers import require_onlooker
from longspan.entrypoints.openai.openapi import answers, struct_schema
from longspan.entrypoints.openai.quoting import quoted
from longspan.errors import QueueFullError

MOST_AT_ONCE = 4
MOST_STORIES = 8


class ToldStory(msgspec.Struct):
    """One choice of a request: `lines` are for people, times in them count from its arrival."""

    request_id: str
    lines: list[str]


class Stories(msgspec.Struct):
    stories: list[ToldStory]


def stories_router(context: Context) -> APIRouter:
    router = APIRouter()
    being_told = 0

    @router.get("/requests/{request_id:path}/story", responses=answers(struct_schema(Stories)))
    async def tell_story(request_id: str, request: Request) -> Response:
        nonlocal being_told
        require_onlooker(context, request)
        if being_told >= MOST_AT_ONCE:
            raise QueueFullError("too many stories are being told; try again soon", retry_after_s=1)
        being_told += 1
        try:
            found = await context.engine.stories(request_id, MOST_STORIES)
        finally:
            being_told -= 1
        if not found:
            message = f"no request {quoted(request_id)} is remembered; the event log may know it"
            raise Refusal(ErrorAnswer(404, message, "invalid_request_error", "request_id", "request_not_found"))
        told = Stories([ToldStory(story.request_id, list(story.lines())) for story in found])
        return Response(msgspec.json.encode(told), media_type="application/json")

    return router
