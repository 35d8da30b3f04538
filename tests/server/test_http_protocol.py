"""Whatever comes on a connection gets an answer or a closed connection, and costs little."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from random import Random

import httpx2
import pytest

from longspan.entrypoints.http_connections import ConnectionLimits
from tests.server.live_server import LiveServer, live_server
from tests.server.raw_http import RawAnswer, answers, connection, exchange, post, until_closed

GET = b"GET /health HTTP/1.1\r\nHost: x\r\n"
CLOSE = "Connection: close"
X = b'{"prompt": "x"}'


LIMITS = ConnectionLimits(connections=8, header_bytes=4096, drop_bytes=1_000_000)


@pytest.fixture(scope="module")
def strict() -> Iterator[LiveServer]:
    """Takes little, and waits for it as long as it takes."""
    with live_server(limits=LIMITS, max_body_mb=0.5) as server:
        yield server


@pytest.fixture(scope="module")
def hasty() -> Iterator[LiveServer]:
    """Times out at once, so that tests need not wait."""
    limits = replace(LIMITS, header_s=0.3, body_s=0.3, write_s=0.3)
    with live_server(limits=limits, max_body_mb=0.5) as server:
        yield server


@pytest.fixture(autouse=True)
def nothing_is_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """What a client sends is no reason for a traceback, nor for a line each time."""
    with caplog.at_level(logging.INFO):
        yield
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def in_time(server: LiveServer, data: bytes = b"") -> RawAnswer:
    """What is answered to a whole request, a completion by default; where this machine had no time to send it before
    the server's patience was over, to the same once more."""
    while True:
        (answer,) = exchange(server, data or post(X, CLOSE))
        if answer.status != 408:
            return answer


def refusals(server: LiveServer) -> dict[str, float]:
    counted = {}
    metrics = in_time(server, b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    for line in metrics.body.decode().splitlines():
        if line.startswith("longspan:requests_refused_total"):
            counted[line.partition('code="')[2].partition('"')[0]] = float(line.split()[-1])
    return counted


GARBAGE = {
    "not HTTP": b"hello\r\n\r\n",
    "NUL": b"\0" * 100,
    "high bytes": bytes(range(128, 256)),
    "a TLS client": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"a" * 500,
    "HTTP/0.9": b"GET /health\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/3.7": b"GET /health HTTP/3.7\r\nHost: x\r\n\r\n",
    "HTTP/2.0 in the request line": b"GET /health HTTP/2.0\r\nHost: x\r\n\r\n",
    "SSH": b"SSH-2.0-OpenSSH_9.6\r\n",
    "an unknown method": b"FETCH /health HTTP/1.1\r\nHost: x\r\n\r\n",
    "a method in small letters": b"get /health HTTP/1.1\r\nHost: x\r\n\r\n",
    "no Host": b"GET /health HTTP/1.1\r\n\r\n",
    "two Hosts": GET + b"Host: y\r\n\r\n",
    "a header without a colon": GET + b"nonsense\r\n\r\n",
    "a space before the colon": GET + b"Name : x\r\n\r\n",
    "a NUL in a header": GET + b"Name: a\0b\r\n\r\n",
    "two lengths": post(X, "Content-Length: 15", "Content-Length: 16"),
    "the same length twice": post(X, "Content-Length: 15", "Content-Length: 15"),
    "length and chunks": post(b"0\r\n\r\n", "Content-Length: 5", "Transfer-Encoding: chunked"),
    "chunks and length": post(b"0\r\n\r\n", "Transfer-Encoding: chunked", "Content-Length: 5"),
    "a negative length": post(X, "Content-Length: -1"),
    "a length in hex": post(X, "Content-Length: 0xf"),
    "a length that is too long": post(X, "Content-Length: " + "9" * 30),
    "an unknown transfer encoding": post(X, "Transfer-Encoding: gzip"),
    "chunked is not last": post(X, "Transfer-Encoding: chunked, gzip"),
    "an absolute target without a path": b"GET http://x HTTP/1.1\r\nHost: x\r\n\r\n",
    "high bytes in the target": b"GET /\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n",
    "a target of only a fragment": b"GET # HTTP/1.1\r\nHost: x\r\n\r\n",
}


@pytest.mark.parametrize("kind", GARBAGE)
def test_what_is_not_http_gets_a_400_and_the_end(server: LiveServer, kind: str) -> None:
    before = refusals(server)
    (answer,) = exchange(server, GARBAGE[kind])
    assert answer.status == 400
    assert answer.error["code"] == "malformed_request"
    assert answer.headers["connection"] == "close"
    after = refusals(server)
    assert after["malformed_request"] == before.get("malformed_request", 0) + 1


@pytest.mark.parametrize(
    ("target", "status"),
    [
        (b"http://elsewhere/health", 200),
        (b"/health?" + b"%ff" * 500, 200),
        (b"/%", 404),
        (b"/%ff%00%ed%a0%80", 404),
        (b"/%2e%2e/%2e%2e/etc/passwd", 404),
        (b"/v1/models/%ed%a0%80", 404),
        (b"/v1/models/" + b"a/" * 900, 404),
        (b"//health", 404),
        (b"//[", 404),
        (b"/health#fragment", 200),
    ],
)
def test_odd_targets(server: LiveServer, target: bytes, status: int) -> None:
    (answer,) = exchange(server, b"GET " + target + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert answer.status == status
    if status != 200:
        assert answer.error["type"] == "invalid_request_error"


def test_connect_is_no_method_here(server: LiveServer) -> None:
    (answer,) = exchange(server, b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com\r\n\r\n")
    assert (answer.status, answer.error["code"]) == (405, "method_not_allowed")


@pytest.mark.parametrize("offer", ["h2c", "websocket", "TLS/1.3"])
def test_an_offer_to_upgrade_is_passed_over(server: LiveServer, offer: str) -> None:
    """Clients that prefer HTTP/2 make it with every first request, also with a body."""
    upgrade = ("Connection: Upgrade, HTTP2-Settings", f"Upgrade: {offer}", "HTTP2-Settings: AAMAAABk")
    whole = post(X, *upgrade) + post(X, CLOSE)
    first, second = exchange(server, whole)
    assert (first.status, second.status) == (200, 200)
    assert first.body.split(b'"choices"')[1] == second.body.split(b'"choices"')[1]
    with connection(server) as sock:  # and byte by byte
        for byte in whole:
            sock.sendall(bytes([byte]))
        assert [answer.status for answer in answers(until_closed(sock))] == [200, 200]


@pytest.mark.parametrize(
    "headers",
    [
        b"Long: " + b"x" * 5000 + b"\r\n\r\n",
        b"x" * 5000 + b": y\r\n\r\n",
        b"Long: " + b"x" * 5000,  # and no end
        b"".join(b"H%d: x\r\n" % number for number in range(101)) + b"\r\n",
        b"Long: x" + b"\r\n y" * 2000,  # folded
    ],
)
@pytest.mark.parametrize("pieces", [1, 7])
def test_headers_that_are_too_large(strict: LiveServer, headers: bytes, pieces: int) -> None:
    data = GET + headers
    step = -(-len(data) // pieces)
    with connection(strict) as sock:
        for start in range(0, len(data), step):
            sock.sendall(data[start : start + step])
        (answer,) = answers(until_closed(sock))
    if b"\r\n y" in headers:  # obsolete, so refused as soon as it is seen
        assert answer.status in (400, 431)
    else:
        assert (answer.status, answer.error["code"]) == (431, "headers_too_large")


def test_a_request_line_that_is_too_large(strict: LiveServer) -> None:
    (answer,) = exchange(strict, b"GET /" + b"x" * 20_000)
    assert answer.status == 431
    assert refusals(strict)["headers_too_large"] > 0


def test_endless_headers_are_not_kept(strict: LiveServer) -> None:
    with connection(strict) as sock:
        sock.sendall(GET + b"Long: ")
        with pytest.raises(ConnectionError):
            for _ in range(10_000):  # 650 MB
                sock.sendall(b"x" * 65536)


@pytest.mark.parametrize("trailer", [b"X: " + b"x" * 20_000, b"X: y\r\n" * 4000])
def test_trailers_that_are_too_large(strict: LiveServer, trailer: bytes) -> None:
    body = b"%x\r\n%s\r\n0\r\n" % (len(X), X) + trailer
    (answer,) = exchange(strict, post(body, "Transfer-Encoding: chunked"))
    assert answer.status == 431


def test_trailers_and_chunk_extensions_are_passed_over(server: LiveServer) -> None:
    body = b"%x;name=value\r\n%s\r\n0\r\nX: y\r\nExpires: z\r\n\r\n" % (len(X), X)
    first, second = exchange(server, post(body, "Transfer-Encoding: chunked") + post(X, CLOSE))
    assert (first.status, second.status) == (200, 200)


def test_a_broken_chunk(server: LiveServer) -> None:
    (answer,) = exchange(server, post(b"5\r\nabc", "Transfer-Encoding: chunked") + b"\r\nzz\r\n" * 10)
    assert (answer.status, answer.error["code"]) == (400, "malformed_request")


@pytest.mark.parametrize("sent", [b"", b"\r\n\r\n", b"GET", GET, GET + b"Name", post(b"", "Content-Length: 10")[:-2]])
def test_a_request_that_does_not_come(hasty: LiveServer, sent: bytes) -> None:
    (answer,) = exchange(hasty, sent)
    assert (answer.status, answer.error["code"]) == (408, "request_timeout")
    assert answer.headers["connection"] == "close"


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize("headers", [("Content-Length: 100",), ("Transfer-Encoding: chunked",)])
def test_a_body_that_does_not_come(hasty: LiveServer, path: str, headers: tuple[str, ...]) -> None:
    (answer,) = exchange(hasty, post(b"5\r\nabc", *headers, path=path))
    assert (answer.status, answer.error["code"]) == (408, "request_timeout")
    assert refusals(hasty)["request_timeout"] > 0


def test_a_body_that_comes_too_slowly(hasty: LiveServer) -> None:
    with connection(hasty) as sock:
        sock.sendall(post(b"", "Content-Length: 100000"))
        sock.settimeout(0.05)
        received = b""
        while not received:
            sock.sendall(b" ")
            try:
                received = sock.recv(65536)
            except TimeoutError:
                continue
    (answer,) = answers(received)
    assert (answer.status, answer.error["code"]) == (408, "request_timeout")


def test_a_timeout_between_requests_is_silent(hasty: LiveServer) -> None:
    """An answer then would be taken for that to the next request."""
    with connection(hasty) as sock:
        sock.sendall(post(X))
        received = b""
        while not received.endswith(b"}"):
            received += sock.recv(65536)
        sock.sendall(b"\r\n")  # some clients end a body with that
        assert until_closed(sock) == b""


def test_pipelined_requests_are_answered_in_order(server: LiveServer) -> None:
    many = b"".join(post(b'{"prompt": "%s", "max_tokens": 1}' % (b"x" * count)) for count in range(1, 101))
    found = exchange(server, many + b"GET /nope HTTP/1.1\r\nHost: x\r\n\r\n" + post(X, CLOSE))
    assert [answer.status for answer in found] == [200] * 100 + [404, 200]
    counts = [answer.body.partition(b'"prompt_tokens":')[2].partition(b",")[0] for answer in found[:100]]
    assert counts == [b"%d" % count for count in range(1, 101)]


def test_how_the_bytes_are_cut_makes_no_difference(server: LiveServer) -> None:
    chunked = post(b"5\r\n" + X[:5] + b"\r\na\r\n" + X[5:] + b"\r\n0\r\nT: x\r\n\r\n", "Transfer-Encoding: chunked")
    upgrade = post(X, "Connection: Upgrade", "Upgrade: h2c")
    stream = post(b'{"prompt": "x", "stream": true}')
    broken = post(X, "Transfer-Encoding: x")
    whole = chunked + upgrade + post(X, path="/nope") + stream + GET + b"\r\n" + upgrade + broken
    random = Random(16)
    for _ in range(60):
        cuts = sorted(random.randrange(len(whole)) for _ in range(random.randint(0, 8)))
        with connection(server) as sock:
            for start, end in pairwise([0, *cuts, len(whole)]):
                sock.sendall(whole[start:end])
            statuses = [answer.status for answer in answers(until_closed(sock))]
        assert statuses == [200, 200, 404, 200, 200, 200, 400], cuts


def test_garbage_behind_a_request_waits_for_its_answer(server: LiveServer) -> None:
    server.engine.hold()
    with connection(server) as sock:
        sock.sendall(post(b'{"prompt": "x", "stream": true}') + b"\0\0\0\r\n\r\n")
        server.engine.admitted.get(timeout=30)
        server.engine.release()
        stream, refused = answers(until_closed(sock))
    assert stream.status == 200 and stream.body.endswith(b"data: [DONE]\n\n")
    assert (refused.status, refused.error["code"]) == (400, "malformed_request")


@pytest.mark.parametrize(
    "broken",
    [
        post(X, "Transfer-Encoding: unknown"),
        post(b"5\r\nabcdefgh\r\n", "Transfer-Encoding: chunked"),
        post(b"zz\r\n", "Transfer-Encoding: chunked"),
        post(b"1;" + b"x" * 300_000, "Transfer-Encoding: chunked"),
    ],
)
@pytest.mark.parametrize("upgrade", [(), ("Connection: Upgrade", "Upgrade: h2c")])
def test_a_broken_body_behind_a_request_waits_for_its_answer(
    server: LiveServer, broken: bytes, upgrade: tuple[str, ...]
) -> None:
    first, second, third = exchange(server, post(X, *upgrade) + post(X) + broken)
    assert (first.status, second.status) == (200, 200)
    assert third.status in (400, 431) and third.error["code"] in ("malformed_request", "headers_too_large")


def test_much_behind_a_request_is_not_kept(server: LiveServer) -> None:
    server.engine.hold()
    with connection(server) as sock:
        sock.sendall(post(X))
        server.engine.admitted.get(timeout=30)
        sock.settimeout(0.5)
        sent = 0
        try:
            while sent < 50_000_000:
                sent += sock.send(GET + b"\r\n")
        except TimeoutError:
            pass  # the server has stopped reading
        assert sent < 50_000_000
        server.engine.release()
        sock.settimeout(30)
        assert answers(until_closed(sock))[0].status == 200


def test_a_client_that_leaves_behind_a_pipelined_request(server: LiveServer) -> None:
    server.engine.hold()
    with connection(server) as sock:
        sock.sendall(post(X) + GET + b"\r\n")
        server.engine.admitted.get(timeout=30)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # leaves with a reset
    server.engine.release()
    assert server.engine.ended.get(timeout=30)[1] in ("aborted", "finished")
    assert httpx2.get(f"{server.url}/health", timeout=30, trust_env=False).status_code == 200


def test_one_connection_too_many(strict: LiveServer) -> None:
    strict.engine.reset()
    strict.engine.hold()
    busy = [socket.create_connection(("127.0.0.1", strict.port), timeout=30) for _ in range(8)]
    try:
        for sock in busy:
            sock.sendall(post(X))
            strict.engine.admitted.get(timeout=30)
        for sent in (b"", post(X), b"\0" * 100_000):
            (answer,) = exchange(strict, sent)
            assert (answer.status, answer.error["code"]) == (503, "server_overloaded")
            assert 1 <= int(answer.headers["retry-after"]) <= 60
        strict.engine.release()
        for sock in busy:
            assert sock.recv(65536).startswith(b"HTTP/1.1 200")
        # Idle now: each makes room for a new one, the longest idle first.
        with connection(strict) as new:
            new.sendall(post(X, CLOSE))
            assert answers(until_closed(new))[0].status == 200
        assert until_closed(busy[0]) == b""
        busy[-1].sendall(post(X, CLOSE))
        assert answers(until_closed(busy[-1]))[0].status == 200
    finally:
        for sock in busy:
            sock.close()


def test_slow_headers_make_room_too(hasty: LiveServer) -> None:
    slow = [socket.create_connection(("127.0.0.1", hasty.port), timeout=30) for _ in range(8)]
    try:
        for sock in slow:
            sock.sendall(GET)
        assert in_time(hasty).status == 200
        statuses = {answer.status for sock in slow for answer in answers(until_closed(sock))}
        assert statuses <= {408, 503}
    finally:
        for sock in slow:
            sock.close()


def test_a_client_that_does_not_read_is_given_up(hasty: LiveServer) -> None:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.settimeout(30)
        sock.connect(("127.0.0.1", hasty.port))
        with suppress(ConnectionError):
            while True:  # until what the server may not keep stays here, and then until it hangs up
                sock.sendall((b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n") * 100)
    assert in_time(hasty).status == 200


def test_a_body_refused_early_is_dropped_and_the_connection_goes_on(server: LiveServer) -> None:
    body = b"x" * 3_000_000
    first, second = exchange(server, post(body, path="/nope") + post(X, CLOSE))
    assert (first.status, second.status) == (404, 200)


def test_an_endless_body_is_not_dropped_for_ever(strict: LiveServer) -> None:
    with connection(strict) as sock, pytest.raises(ConnectionError):
        sock.sendall(post(b"", "Transfer-Encoding: chunked", path="/nope"))
        for _ in range(10_000):
            sock.sendall(b"10000\r\n" + b"x" * 65536 + b"\r\n")


def test_a_compressed_body_is_refused(server: LiveServer) -> None:
    for encoding in ("gzip", "br", "deflate, gzip"):
        (answer,) = exchange(server, post(X, f"Content-Encoding: {encoding}", CLOSE))
        assert answer.status == 415
        assert "Content-Encoding" in answer.error["message"]
    assert exchange(server, post(X, "Content-Encoding: identity", CLOSE))[0].status == 200


def test_a_client_that_asks_first_may_send_then(server: LiveServer) -> None:
    with connection(server) as sock:
        sock.sendall(post(b"", "Expect: 100-continue", f"Content-Length: {len(X)}"))
        assert sock.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(X)
        assert answers(until_closed(sock))[0].status == 200


def test_old_clients(server: LiveServer) -> None:
    (answer,) = exchange(server, b"GET /health HTTP/1.0\r\n\r\n")
    assert answer.status == 200
