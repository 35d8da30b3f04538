"""What machines ask about the server: /health, /ready, /version, /metrics."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from longspan import __version__
from longspan.entrypoints.openai.context import Context
from longspan.entrypoints.openai.openapi import answers
from longspan.errors import EngineDeadError, EngineDrainingError, EngineStalledError
from longspan.metrics.prometheus import OPEN_METRICS


def health_router(context: Context) -> APIRouter:
    router = APIRouter()
    engine = context.engine

    def check_alive() -> None:
        if engine.error is not None:
            raise EngineDeadError(f"the engine is dead: {engine.error}")
        if (stalled := engine.stalled) is not None:
            raise EngineStalledError(f"the engine stalls: {stalled}")

    @router.head("/health", include_in_schema=False)
    @router.get("/health")
    async def health() -> dict[str, str]:
        """Alive: 200 also while draining, so that nobody restarts a server that is finishing its work; and while any
        instance serves."""
        check_alive()
        missing = [report for report in engine.instances() if report.state in ("starting", "missing")]
        if missing and not engine.draining:
            told = "; ".join(f"instance {one.instance} ({one.state}): {one.why}" for one in missing)
            return {"status": "degraded", "missing": told}
        return {"status": "draining" if engine.draining else "ok"}

    @router.head("/ready", include_in_schema=False)
    @router.get("/ready")
    async def ready() -> dict[str, str]:
        """Takes new requests."""
        check_alive()
        if engine.draining:
            raise EngineDrainingError("the server is shutting down")
        return {"status": "ready"}

    @router.get("/version")
    async def show_version() -> dict[str, str]:
        return {"version": __version__}

    @router.head("/metrics", include_in_schema=False)
    @router.get("/metrics", responses=answers({"type": "string"}, media_type="text/plain", also=OPEN_METRICS))
    async def metrics(request: Request) -> Response:
        """Prometheus' text format, or OpenMetrics for whoever accepts that."""
        text, content_type = context.metrics.render(request.headers.get("accept", ""))
        return Response(text, media_type=content_type)

    return router
