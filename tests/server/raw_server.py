"""A server that answers with the bytes it is given: what other servers, proxies and broken ones send."""

from __future__ import annotations

import socketserver
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Asked:
    """One request, as it came."""

    line: str
    headers: dict[str, str]
    body: bytes


Answer = Callable[[Asked], Sequence[bytes]]
"""What is sent in so many writes; then the connection closes."""


@dataclass
class RawServer:
    url: str
    asked: list[Asked] = field(default_factory=list)


@contextmanager
def raw_server(answer: Answer) -> Iterator[RawServer]:
    class Handler(socketserver.StreamRequestHandler):
        disable_nagle_algorithm = True

        def handle(self) -> None:
            asked = self.read()
            if asked is None:
                return
            server.asked.append(asked)
            for piece in answer(asked):
                self.wfile.write(piece)

        def read(self) -> Asked | None:
            line = self.rfile.readline().decode("latin-1").strip()
            if not line:
                return None
            headers = {}
            while header := self.rfile.readline().decode("latin-1").strip():
                name, _, value = header.partition(":")
                headers[name.lower()] = value.strip()
            return Asked(line, headers, self.rfile.read(int(headers.get("content-length", 0))))

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            """A client that has gone is no news."""

    with Server(("127.0.0.1", 0), Handler) as listening:
        server = RawServer(f"http://127.0.0.1:{listening.server_address[1]}")
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            listening.shutdown()
            thread.join()


def response(body: bytes, status: str = "200 OK", content_type: str = "application/json", *headers: str) -> bytes:
    """A whole answer, whose end is that of the connection."""
    lines = [f"HTTP/1.1 {status}", f"content-type: {content_type}", "connection: close", *headers, "", ""]
    return "\r\n".join(lines).encode() + body
