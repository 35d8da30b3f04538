"""GET /fleet: how each instance is. POST /fleet: one more. POST /fleet/{instance}/{drain, remove, restart}: what is to
become of one."""

from __future__ import annotations

import re
from typing import cast, get_args

import msgspec
from fastapi import APIRouter, Request, Response

from longspan.engine.fleet import Purpose
from longspan.entrypoints.openai.context import Context
from longspan.entrypoints.openai.errors import ErrorAnswer, Refusal
from longspan.entrypoints.openai.onlookers import require_onlooker
from longspan.entrypoints.openai.openapi import answers, struct_schema
from longspan.executor.base import InstanceState

_NUMBER = re.compile("[0-9]{1,6}")


class FleetInstance(msgspec.Struct):
    """why: what ended its workers last; empty where nothing has. restarts: how often they were started again.

    pids: of its processes. node: the machine that they are on. kv_tokens_used, kv_tokens_cached: slots of its pool, of
    tokens that some request refers to, and that none does.
    """

    instance: int
    state: InstanceState
    why: str
    restarts: int
    pids: tuple[int, ...]
    kv_tokens_used: int
    kv_tokens_cached: int
    node: int = 0


class FleetList(msgspec.Struct):
    instances: list[FleetInstance]


def fleet_router(context: Context) -> APIRouter:
    router = APIRouter()

    @router.get("/fleet", responses=answers(struct_schema(FleetList)))
    async def list_fleet(request: Request) -> Response:
        """How each instance is."""
        require_onlooker(context, request)
        return told()

    @router.post("/fleet", responses=answers(struct_schema(FleetList)))
    async def add_instance(request: Request) -> Response:
        """Start one instance more; it is the last, and starts."""
        require_commander(request)
        context.engine.add_instance()
        return told()

    @router.post("/fleet/{instance}/{purpose}", responses=answers(struct_schema(FleetList)))
    async def change_fleet(instance: str, purpose: str, request: Request) -> Response:
        """Empty an instance while its requests go on; then it stands empty, ends, or its workers are started again."""
        require_commander(request)
        if purpose not in get_args(Purpose) or not _NUMBER.fullmatch(instance):
            message = f"POST /fleet/INSTANCE/ACTION knows the actions {', '.join(get_args(Purpose))}"
            raise Refusal(ErrorAnswer(404, message, "invalid_request_error", None, "not_found"))
        context.engine.leave(int(instance), cast(Purpose, purpose))
        return told()

    def require_commander(request: Request) -> None:
        """Any page that a browser of this machine shows can send a POST here: it says from where it is."""
        require_onlooker(context, request)
        if not context.config.has_keys and "origin" in request.headers:
            message = "pages in a browser may not change the fleet; use `longspan fleet`, or start with --api-key-file"
            raise Refusal(ErrorAnswer(403, message, "invalid_request_error", None, "forbidden"))

    def told() -> Response:
        stats, reports = context.engine.stats(), context.engine.instances()
        used = dict(enumerate(stats.kv_tokens_used_by_instance))
        cached = dict(enumerate(stats.kv_tokens_cached_by_instance))
        instances = FleetList(
            [FleetInstance(report.instance, report.state, report.why, report.restarts, report.pids,
                           used.get(report.instance, 0), cached.get(report.instance, 0), report.node)
             for report in reports]
        )  # fmt: skip
        return Response(msgspec.json.encode(instances), media_type="application/json")

    return router
