"""Start an engine, serve it, and stop without losing an answer.

The first SIGTERM or SIGINT drains: /ready turns 503, new requests are refused, running ones finish. A second
one, or one while the model still loads, stops at once.

When the engine dies, its streams end with the error and /health answers 503 for a few seconds, so that a monitor can
see why; then the process exits with status 1, so that its supervisor starts it anew.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
from collections.abc import Awaitable, Callable

import uvicorn
import uvloop
from fastapi import FastAPI

from longspan.config import EngineConfig
from longspan.engine.phase_display import shown_phases
from longspan.engine.protocol import EngineClient
from longspan.entrypoints.bind import bind, bind_error
from longspan.entrypoints.http_server import HTTPServer
from longspan.entrypoints.logs import configure_logging
from longspan.entrypoints.openai.api_keys import read_keys
from longspan.entrypoints.openai.app import create_app
from longspan.entrypoints.openai.context import Context
from longspan.entrypoints.server_config import ServerConfig
from longspan.entrypoints.tls import tls_settings
from longspan.entrypoints.tracing.settings import check_tracing
from longspan.errors import LongspanError
from longspan.interrupts import stopped_by

logger = logging.getLogger("longspan.server")

StartEngine = Callable[[EngineConfig], Awaitable[EngineClient]]
Announce = Callable[[EngineClient, str], None]

ENGINE_DIED = 1
STOPPED_BY_SIGNAL = 128


def serve(
    engine_config: EngineConfig,
    config: ServerConfig,
    *,
    start_engine: StartEngine | None = None,
    announce: Announce | None = None,
) -> int:
    """Serve until a signal; returns 0 after a drain, 128 + signal if stopped at once, 1 if the engine died.

    announce: called with the engine and the server's URL once it answers.

    Raises:
        LongspanError: the server could not start.
    """
    configure_logging(config)
    check_access(config)
    check_tracing(config)
    with bind(config.host, config.port) as sock, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        service = Service(engine_config, config, sock, start_engine or start_and_show, announce)
        return runner.run(service.run())


def check_access(config: ServerConfig) -> None:
    """Warn of a server that is open to all. Raises ConfigError if its keys or its certificate cannot be used."""
    tls_settings(config)
    if not (read_keys(config) or config.is_local):
        logger.warning("whoever reaches %s may use this server: give --api-key or --api-key-file", config.host)


class Service:
    """One engine and its HTTP server, from start to end."""

    def __init__(
        self,
        engine_config: EngineConfig,
        config: ServerConfig,
        sock: socket.socket,
        start_engine: StartEngine,
        announce: Announce | None,
    ) -> None:
        self.engine_config = engine_config
        self.config = config
        self.sock = sock
        self.start_engine = start_engine
        self.announce = announce
        self.signals: list[int] = []
        self.draining: asyncio.Task[None] | None = None
        self.engine: EngineClient | None = None
        self.server: HTTPServer | None = None
        self.context: Context | None = None
        self.main: asyncio.Task[int] | None = None

    async def run(self) -> int:
        self.main = asyncio.current_task()
        try:
            with stopped_by(self._on_signal):
                return await self._serve()
        except asyncio.CancelledError:
            if not self.signals:
                raise
            return STOPPED_BY_SIGNAL + self.signals[-1]

    async def _serve(self) -> int:
        engine = self.engine = await self._start_engine()
        ending = asyncio.create_task(self._end_with(engine))
        try:
            await self._listen(engine)
            return 0 if engine.error is None else ENGINE_DIED
        finally:
            ending.cancel()
            await engine.close()
            if self.context is not None:
                await asyncio.to_thread(self.context.close)

    async def _start_engine(self) -> EngineClient:
        try:
            return await self.start_engine(self.engine_config)
        except LongspanError:
            raise
        except Exception as error:
            logger.debug("the engine did not start", exc_info=True)
            reason = str(error).strip().partition("\n")[0]
            raise LongspanError(
                f"the engine did not start: {type(error).__name__}: {reason} (--log-level debug tells more)"
            ) from error

    async def _listen(self, engine: EngineClient) -> None:
        scheme = "http" if self.config.ssl_certfile is None else "https"
        url = f"{scheme}://{_client_host(self.config.host)}:{self.sock.getsockname()[1]}"
        announce = self.announce
        app = create_app(engine, self.config)
        self.context = app.state.context
        _do_slow_things_once(app)
        self.server = HTTPServer(app, on_started=lambda: announce(engine, url) if announce else None)
        try:
            await self.server.serve(sockets=[self.sock])
        except OSError as error:  # another server began to listen here while our model was loading
            raise bind_error(error, self.config.host, self.config.port) from error

    async def _end_with(self, engine: EngineClient) -> None:
        """When the engine dies the server goes on for a while, then ends."""
        why = await engine.dead()
        logger.critical("the engine is dead, and the server ends in %g s: %s", self.config.dead_linger_s, why)
        await asyncio.sleep(self.config.dead_linger_s)
        if self.server is not None:
            self.server.should_exit = True

    def _on_signal(self, number: int) -> None:
        self.signals.append(number)
        if len(self.signals) == 1 and self.server is not None and self.engine is not None:
            self.draining = asyncio.get_running_loop().create_task(self._drain(self.engine, self.server))
        elif self.main is not None:
            self.main.cancel()

    async def _drain(self, engine: EngineClient, server: uvicorn.Server) -> None:
        seconds = self.config.drain_timeout_s
        logger.info("stopping: running requests have %g s to finish; a second signal stops at once", seconds)
        try:
            await engine.drain(seconds)
        finally:
            server.should_exit = True


def _do_slow_things_once(app: FastAPI) -> None:
    """What would hold the event loop for a tenth of a second while it serves: the schema of /openapi.json is made,
    which the app keeps, and the garbage collector is told to look no more at the many objects that the start left."""
    app.openapi()
    gc.collect()
    gc.freeze()


async def start_and_show(config: EngineConfig) -> EngineClient:
    """Start an engine, and show how far that is."""
    from longspan.engine.assembly import start_engine

    with shown_phases(logger.info) as on_phase:
        return await start_engine(config, on_phase=on_phase)


def _client_host(host: str) -> str:
    """Where a client on this machine finds a server that listens on `host`."""
    if host in ("0.0.0.0", "::", ""):
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host
