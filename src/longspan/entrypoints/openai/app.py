"""The OpenAI-compatible server as an ASGI application around one engine."""

from __future__ import annotations

import time

from fastapi import FastAPI
from starlette.routing import Route

from longspan import __version__
from longspan.engine.protocol import EngineClient
from longspan.entrypoints.anthropic.messages import count_tokens_router, messages_router
from longspan.entrypoints.openai import errors
from longspan.entrypoints.openai.access_log import AccessLogMiddleware
from longspan.entrypoints.openai.api_keys import ApiKeyMiddleware, ApiKeys, read_keys
from longspan.entrypoints.openai.body import Bodies
from longspan.entrypoints.openai.chat import chat_router
from longspan.entrypoints.openai.completions import completions_router
from longspan.entrypoints.openai.context import Context
from longspan.entrypoints.openai.dashboard import dashboard_router
from longspan.entrypoints.openai.fleet import fleet_router
from longspan.entrypoints.openai.health import health_router
from longspan.entrypoints.openai.http_metrics import HttpMetricsMiddleware
from longspan.entrypoints.openai.models import models_router
from longspan.entrypoints.openai.origins import (
    CrossOriginMiddleware,
    HostMiddleware,
    MethodMiddleware,
    host_check,
)
from longspan.entrypoints.openai.request_id import RequestIdMiddleware
from longspan.entrypoints.openai.stories import stories_router
from longspan.entrypoints.openai.tenants import TenantHeaderMiddleware
from longspan.entrypoints.openai.tokenize import detokenize_router, tokenize_router, tokenizer_info_router
from longspan.entrypoints.responses.router import responses_router
from longspan.entrypoints.server_config import ServerConfig
from longspan.entrypoints.tracing.middleware import TraceContextMiddleware
from longspan.metrics.prometheus import ServerMetrics

_ROUTERS = (completions_router, chat_router, responses_router, messages_router, count_tokens_router, tokenize_router,
            detokenize_router, tokenizer_info_router, models_router, stories_router, fleet_router, health_router,
            dashboard_router)  # fmt: skip


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
    routers = [router(context) for router in _ROUTERS]
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
    paths = {route.path for route in routes if isinstance(route, Route)}
    if config.otlp_traces_endpoint is not None:
        app.add_middleware(TraceContextMiddleware)
    app.add_middleware(HttpMetricsMiddleware, metrics=metrics.http, paths=paths)
    app.add_middleware(AccessLogMiddleware)
    app.add_middleware(RequestIdMiddleware)
    return app
