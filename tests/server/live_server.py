"""The real HTTP server on a free port of this machine, in a thread."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import uvloop

from longspan.entrypoints.bind import bind
from longspan.entrypoints.http_connections import ConnectionLimits
from longspan.entrypoints.http_server import HTTPServer
from longspan.entrypoints.openai.app import create_app
from longspan.entrypoints.openai.body import Bodies
from longspan.entrypoints.server_config import ServerConfig
from tests.server.fake_engine import FakeEngine


class LiveServer:
    def __init__(self, engine: FakeEngine, port: int, bodies: Bodies) -> None:
        self.engine = engine
        self.bodies = bodies
        self.port = port
        self.url = f"http://127.0.0.1:{port}"

    def prompt(self) -> str:
        """The one prompt that the engine got, as text: its tokens are bytes."""
        (prompt,) = self.engine.prompts.values()
        return bytes(prompt).decode()


def typed_events(http: httpx2.Client, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The events of a stream in which each is named by its type."""
    with http.stream("POST", path, json=body) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream"), answer.read()
        text = answer.read().decode()
    found = []
    for part in text.split("\n\n")[:-1]:
        name, data = part.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        found.append(event)
    return found


@contextmanager
def live_server(
    engine: FakeEngine | None = None, *, limits: ConnectionLimits | None = None, **settings: object
) -> Iterator[LiveServer]:
    engine = engine or FakeEngine()
    config = ServerConfig(port=0, **settings)  # type: ignore[arg-type]
    started = threading.Event()
    sock = bind(config.host, config.port)
    app = create_app(engine, config)
    server = HTTPServer(app, started.set, limits)

    def run() -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(server.serve(sockets=[sock]))

    thread = threading.Thread(target=run, daemon=True)
    port = sock.getsockname()[1]
    thread.start()
    assert started.wait(30)
    try:
        yield LiveServer(engine, port, app.state.bodies)
    finally:
        server.should_exit = True
        server.force_exit = True
        thread.join(30)
        assert not thread.is_alive()
        app.state.context.close()
