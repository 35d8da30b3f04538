"""A client that leaves frees what its request holds, at once."""

from __future__ import annotations

import json
import socket

import httpx2
import pytest

from tests.server.fake_engine import FakeEngine
from tests.server.live_server import LiveServer, live_server

PATHS: dict[str, dict[str, object]] = {
    "/v1/completions": {"prompt": "x"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "x"}]},
    "/v1/responses": {"input": "x"},
    "/v1/messages": {"messages": [{"role": "user", "content": "x"}], "max_tokens": 400},
}
CASES = [(path, n) for path in PATHS for n in ((1, 3) if path.endswith("completions") else (1,))]


def send(server: LiveServer, path: str, body: dict[str, object]) -> socket.socket:
    """A request whose answer nobody has read yet."""
    content = json.dumps(body).encode()
    sock = socket.create_connection(("127.0.0.1", server.port), timeout=30)
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    sock.sendall(head.encode() + b"Content-Length: %d\r\n\r\n" % len(content) + content)
    return sock


@pytest.mark.parametrize(("path", "n"), CASES)
@pytest.mark.parametrize("stream", [False, True])
def test_leaving_before_the_first_token(server: LiveServer, path: str, stream: bool, n: int) -> None:
    server.engine.hold()
    with send(server, path, PATHS[path] | {"stream": stream, "n": n}):
        admitted = {server.engine.admitted.get(timeout=30) for _ in range(n)}
    ended = dict(server.engine.ended.get(timeout=30) for _ in range(n))
    assert set(ended) == admitted
    assert set(ended.values()) == {"aborted"}


@pytest.mark.parametrize(("path", "n"), CASES)
def test_leaving_in_the_middle_of_a_stream(server: LiveServer, path: str, n: int) -> None:
    engine = server.engine
    engine.answer = "a" * 400
    engine.hold_after = 5
    url = server.url + path
    body = PATHS[path] | {"stream": True, "n": n} | ({"max_tokens": 400} if path.endswith("completions") else {})
    with httpx2.Client(timeout=30, trust_env=False) as http, http.stream("POST", url, json=body) as answer:
        lines = answer.iter_lines()
        while not any(f'"{name}":"a"' in line for line in [next(lines)] for name in ("text", "content", "delta")):
            pass
    ended = dict(engine.ended.get(timeout=30) for _ in range(n))
    assert set(ended.values()) == {"aborted"}
    assert not engine.running


def test_leaving_while_waiting_for_a_whole_answer(server: LiveServer) -> None:
    server.engine.hold()
    with send(server, "/v1/completions", {"prompt": ["x", "y"]}):
        for _ in range(2):
            server.engine.admitted.get(timeout=30)
    assert {server.engine.ended.get(timeout=30)[1] for _ in range(2)} == {"aborted"}
    assert not server.engine.running


def test_a_silent_stream_is_kept_alive() -> None:
    """Also: the role comes with the first token, not before it."""
    engine = FakeEngine()
    with live_server(engine, keep_alive_s=0.01) as server, httpx2.Client(timeout=30, trust_env=False) as http:
        engine.hold()
        body = PATHS["/v1/chat/completions"] | {"stream": True}
        with http.stream("POST", f"{server.url}/v1/chat/completions", json=body) as answer:
            lines = (line for line in answer.iter_lines() if line)
            assert [next(lines) for _ in range(3)] == [": keep-alive"] * 3
            engine.release()
            data = [line for line in lines if line.startswith("data: ")]
    assert '"role":"assistant"' in data[0]
    assert '"content":"H"' in data[1]
    assert data[-1] == "data: [DONE]"
