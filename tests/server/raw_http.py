"""What no client library sends: bytes as they are, and what comes back until the server closes."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from tests.server.live_server import LiveServer

PATIENCE_S = 30


@dataclass
class RawAnswer:
    """One HTTP answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> dict[str, Any]:
        """The error, in OpenAI's shape."""
        assert self.headers["content-type"].startswith("application/json"), self
        assert self.headers["x-request-id"]
        (error,) = json.loads(self.body).values()
        assert set(error) == {"message", "type", "param", "code"}
        fields: dict[str, Any] = error
        return fields


@contextmanager
def connection(server: LiveServer) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S) as sock:
        yield sock


def until_closed(sock: socket.socket) -> bytes:
    """All that comes; raises TimeoutError if the server does not close."""
    received = b""
    with suppress(ConnectionError):
        while piece := sock.recv(65536):
            received += piece
    return received


def exchange(server: LiveServer, data: bytes) -> list[RawAnswer]:
    """What the server answers to `data` before it closes the connection."""
    with connection(server) as sock:
        with suppress(ConnectionError):
            sock.sendall(data)
        return answers(until_closed(sock))


def answers(received: bytes) -> list[RawAnswer]:
    found = []
    while received:
        head, _, received = received.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        status = int(lines[0].split()[1])
        if status == 100:
            continue
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
        if headers.get("transfer-encoding") == "chunked":
            body, received = _chunks(received)
        else:
            length = int(headers.get("content-length", "0"))
            body, received = received[:length], received[length:]
        found.append(RawAnswer(status, headers, body))
    return found


def _chunks(received: bytes) -> tuple[bytes, bytes]:
    body = b""
    while True:
        size, _, received = received.partition(b"\r\n")
        length = int(size, 16)
        body += received[:length]
        received = received[length + 2 :]
        if length == 0:
            return body, received


def post(body: bytes, *more: str, path: str = "/v1/completions") -> bytes:
    """A request with a JSON body, and the header lines in `more`."""
    lines = [f"POST {path} HTTP/1.1", "Host: x", "Content-Type: application/json", *more]
    if not any(line.lower().startswith(("content-length", "transfer-encoding")) for line in more):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body
