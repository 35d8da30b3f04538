"""uvicorn as it is run here: the same for `longspan serve` and for tests."""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI
from starlette.types import Scope

from longspan.entrypoints.http_connections import ConnectionLimits, Connections
from longspan.entrypoints.http_protocol import BoundedHTTP
from longspan.entrypoints.openai.access_log import log_access
from longspan.entrypoints.openai.context import Context
from longspan.entrypoints.openai.errors import ErrorAnswer, refuse
from longspan.entrypoints.openai.http_metrics import NO_HANDLER
from longspan.entrypoints.server_config import ServerConfig
from longspan.entrypoints.tls import tls_settings

logger = logging.getLogger("longspan.server")

OTHER_FILES = 256  # that the process has open or may open beside its connections
SLOW_READERS_S = 5  # how long finished answers may take to reach their clients
IDLE_CONNECTION_S = 30
TLS_HANDSHAKE_S = 10.0


class HTTPServer(uvicorn.Server):
    """Serves an application of `create_app` on a bound socket, each connection within `limits`.

    It leaves signals to its caller: uvicorn would raise SIGTERM again after a clean stop, like a crash.
    """

    def __init__(self, app: FastAPI, on_started: Callable[[], None], limits: ConnectionLimits | None = None) -> None:
        context: Context = app.state.context
        super().__init__(_uvicorn_config(app, context.config))
        self.on_started = on_started
        self.connections = Connections(limits or connection_limits(context.config), self._count)
        self.context = context

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await self.lifespan.startup()
        loop = asyncio.get_running_loop()
        self.servers = [
            await loop.create_server(
                self._connection,
                sock=sock,
                backlog=self.config.backlog,
                ssl=self.config.ssl,
                ssl_handshake_timeout=TLS_HANDSHAKE_S if self.config.ssl else None,
            )
            for sock in sockets or []
        ]
        self.started = True
        self.on_started()

    async def on_tick(self, counter: int) -> bool:
        self.connections.sweep(asyncio.get_running_loop().time())
        return await super().on_tick(counter)

    def _connection(self) -> BoundedHTTP:
        return BoundedHTTP(
            connections=self.connections,
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
        )

    def _count(self, scope: Scope, answer: ErrorAnswer) -> None:
        refuse(self.context.metrics, answer)
        self.context.metrics.http.answered(NO_HANDLER, scope.get("method", "-"), answer.status, None)
        log_access(scope, answer.status)


def connection_limits(config: ServerConfig) -> ConnectionLimits:
    return ConnectionLimits(
        connections=affordable_connections(config.max_connections),
        header_bytes=config.max_header_kb * 1024,
        header_s=config.header_timeout_s,
        body_s=config.body_timeout_s,
        drop_bytes=2 * config.max_body_bytes,  # of a body less than twice too large its sender gets the answer
    )


def affordable_connections(wanted: int) -> int:
    """Return how many connections this process may open. Its limit of open files is raised for them, if it may be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + OTHER_FILES
    if soft < needed and soft != resource.RLIM_INFINITY:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    affordable = wanted if soft == resource.RLIM_INFINITY else max(1, soft - OTHER_FILES)
    if affordable < wanted:
        logger.warning("%d connections at most, since this process may open %d files (ulimit -n)", affordable, soft)
    return affordable


def _uvicorn_config(app: FastAPI, config: ServerConfig) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=BoundedHTTP,
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        log_level="debug" if config.log_level == "debug" else "warning",
        server_header=False,
        timeout_keep_alive=IDLE_CONNECTION_S,
        timeout_graceful_shutdown=SLOW_READERS_S,
        **tls_settings(config),
    )
