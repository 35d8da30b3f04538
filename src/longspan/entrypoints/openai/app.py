"""The OpenAI-compatible server as an ASGI application around one engine."""

from __future__ import annotations

import time

from fastapi import FastAPI

from longspan import __version__
from longspan.engine.protocol import EngineClient
from longspan.entrypoints.openai import errors
from longspan.entrypoints.openai.access_log import AccessLogMiddleware
from longspan.entrypoints.openai.api_keys import ApiKeyMiddleware, ApiKeys, read_keys
from longspan.entrypoints.openai.body import Bodies
from longspan.entrypoints.openai.chat import chat_router
from longspan.entrypoints.openai.completions import completions_router
from longspan.entrypoints.openai.context import Context
from longspan.entrypoints.openai.health import health_router
from longspan.entrypoints.openai.models import models_router
from longspan.entrypoints.openai.origins import (
    CrossOriginMiddleware,
    HostMiddleware,
    MethodMiddleware,
    host_check,
)
from longspan.entrypoints.openai.request_id import RequestIdMiddleware
from longspan.entrypoints.openai.tenants import TenantHeaderMiddleware
from longspan.entrypoints.server_config import ServerConfig
from longspan.metrics.prometheus import ServerMetrics


def create_app(engine: EngineClient, config: ServerConfig | None = None) -> FastAPI:
    """Make an application that serves `engine`; its caller closes the engine."""
    config = config or ServerConfig()
    metrics = ServerMetrics(
        model_name=engine.model_name, max_model_len=engine.max_model_len, stats=engine.stats,
        error=lambda: engine.error,
    )
    context = Context.of(engine, metrics, config, started=int(time.time()))
    app = FastAPI(
        title="Longspan",
        version=__version__,
        docs_url=None,  # the pages load scripts from elsewhere; /openapi.json stays
        redoc_url=None,
        redirect_slashes=False,
        responses={"4XX": {"description": "An error in OpenAI's shape"}},  # never FastAPI's 422
    )
    app.state.context = context
    app.state.bodies = Bodies(limit=config.max_body_bytes, budget=config.body_budget_bytes)
    routers = [router(context) for router in (completions_router, chat_router, models_router, health_router)]
    for router in routers:
        app.include_router(router)
    errors.install(app, metrics)
    # Added last, called first: every answer has its id and its line in the log, whoever refuses.
    routes = [*app.routes, *(route for router in routers for route in router.routes)]
    app.add_middleware(MethodMiddleware, routes=routes, metrics=metrics)
    if config.tenants_by_header:
        app.add_middleware(TenantHeaderMiddleware, metrics=metrics)
    if keys := read_keys(config):
        limited = ApiKeys(keys, config.key_max_requests, config.key_max_tokens)
        app.add_middleware(ApiKeyMiddleware, keys=limited, metrics=metrics, tells_tenant=config.tenants_by_key)
    if is_allowed := host_check(config):
        app.add_middleware(HostMiddleware, is_allowed=is_allowed, metrics=metrics)
    if config.cors_origins:
        app.add_middleware(CrossOriginMiddleware, origins=config.cors_origins, metrics=metrics)
    app.add_middleware(AccessLogMiddleware)
    app.add_middleware(RequestIdMiddleware)
    return app
