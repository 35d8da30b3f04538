"""A receiver of traces on this machine, by OTLP over HTTP, that keeps what comes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span


@dataclass
class Receiver:
    """opened: while it is not set, nobody is answered. came: is set once somebody has asked. bodies: as they came."""

    url: str = ""
    status: int = 200
    opened: threading.Event = field(default_factory=threading.Event)
    came: threading.Event = field(default_factory=threading.Event)
    bodies: list[bytes] = field(default_factory=list)
    services: set[str] = field(default_factory=set)

    def spans(self) -> list[Span]:
        found = []
        for body in self.bodies:
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                self.services |= {a.value.string_value for a in resource.resource.attributes if a.key == "service.name"}
                found += [span for scope in resource.scope_spans for span in scope.spans]
        return found


@contextmanager
def receiver() -> Iterator[Receiver]:
    state = Receiver()
    state.opened.set()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            state.came.set()
            state.opened.wait(60)
            if state.status == 200:
                state.bodies.append(body)
            self.send_response(state.status)
            self.end_headers()
            self.wfile.write(ExportTraceServiceResponse().SerializeToString())

        def log_message(self, format: str, *args: object) -> None:
            """Nothing is printed."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_port}/v1/traces"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        state.opened.set()
        server.shutdown()
        thread.join(30)
        server.server_close()
