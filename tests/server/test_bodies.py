"""Bodies: each within its limit, all within a budget, and refused ones are not kept."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from longspan.entrypoints.server_config import ServerConfig
from longspan.errors import ConfigError
from tests.server.live_server import LiveServer, live_server
from tests.server.raw_http import RawAnswer, answers, connection, exchange, post, until_closed

MIB = 1024 * 1024
HEALTH = b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


@pytest.fixture(scope="module")
def tight() -> Iterator[LiveServer]:
    """All bodies 8 MiB, those above 1 MiB 6 of them, and each 4."""
    with live_server(max_body_mb=4, body_budget_mb=8) as server:
        yield server


def begin(server: LiveServer, stack: ExitStack, size: int, sent: int) -> Callable[[], RawAnswer]:
    """Sends the first `sent` bytes of a body of `size`; what is returned sends the rest and gives the answer."""
    sock = stack.enter_context(connection(server))
    body = b" " * size
    sock.sendall(post(b"", f"Content-Length: {size}", "Connection: close") + body[:sent])

    def finish() -> RawAnswer:
        sock.sendall(body[sent:])
        (answer,) = answers(until_closed(sock))
        return answer

    return finish


def ask(server: LiveServer, size: int, *headers: str) -> RawAnswer:
    """The answer to a whole body of blanks."""
    body = b" " * size
    if "Transfer-Encoding: chunked" in headers:
        piece = b"10000\r\n" + b" " * 65536 + b"\r\n"
        body = piece * (size // 65536) + b"0\r\n\r\n"
    (answer,) = exchange(server, post(body, *headers, "Connection: close"))
    return answer


def wait_until_held(server: LiveServer, num_bytes: int) -> None:
    """Until the server has taken so many bytes of unfinished bodies: asked of the server, which answers in its turn."""
    while server.bodies.held < num_bytes:
        assert exchange(server, HEALTH)[0].status == 200


@pytest.mark.parametrize("headers", [(), ("Transfer-Encoding: chunked",)])
def test_large_bodies_share_a_budget_and_small_ones_pass(tight: LiveServer, headers: tuple[str, ...]) -> None:
    with ExitStack() as stack:
        first = begin(tight, stack, 4 * MIB, 3 * MIB)
        second = begin(tight, stack, 3 * MIB, 2 * MIB)
        wait_until_held(tight, 5 * MIB)
        refused = ask(tight, 3 * MIB, *headers)
        assert (refused.status, refused.error["code"], refused.error["type"]) == (
            503, "server_overloaded", "server_error",
        )  # fmt: skip
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert ask(tight, MIB).status == 400  # read, and blank
        assert exchange(tight, post(b'{"prompt": "x"}', "Connection: close"))[0].status == 200
        assert first().status == 400
        assert second().status == 400
    assert tight.bodies.held == 0
    assert ask(tight, 3 * MIB, *headers).status == 400


def test_what_is_given_up_counts_no_more(tight: LiveServer) -> None:
    with ExitStack() as stack:
        begin(tight, stack, 4 * MIB, 3 * MIB)
        wait_until_held(tight, 3 * MIB)
    assert ask(tight, 5 * MIB).status == 413
    assert ask(tight, 5 * MIB, "Transfer-Encoding: chunked").status == 413
    while tight.bodies.held:  # its client has left
        assert exchange(tight, HEALTH)[0].status == 200


def test_a_claimed_length_costs_nothing(tight: LiveServer) -> None:
    """Only what came counts: else a few clients that send nothing would shut out all others."""
    with ExitStack() as stack:
        for _ in range(20):
            begin(tight, stack, 4 * MIB, 0)
        assert ask(tight, 3 * MIB).status == 400


def test_a_body_does_not_count_while_it_is_answered(tight: LiveServer) -> None:
    tight.engine.reset()
    tight.engine.hold()
    padding = b" " * (2 * MIB)
    with ExitStack() as stack:
        for _ in range(4):
            sock = stack.enter_context(connection(tight))
            sock.sendall(post(b'{"prompt": "x"' + padding + b"}", "Connection: close"))
            tight.engine.admitted.get(timeout=30)
        assert tight.bodies.held == 0
        tight.engine.release()


@pytest.mark.parametrize("budget", [1, 4, 5.3, float("inf"), -1, 0])
def test_budgets_that_do_not_hold_one_body(budget: float) -> None:
    with pytest.raises(ConfigError, match="body_budget_mb"):
        ServerConfig(max_body_mb=4, body_budget_mb=budget)


def test_a_client_that_sends_all_before_it_reads_gets_its_answer(tight: LiveServer) -> None:
    for size in (5 * MIB, 7 * MIB):
        with socket.create_connection(("127.0.0.1", tight.port), timeout=30) as sock:
            sock.sendall(post(b" " * size))
            (answer,) = answers(until_closed(sock))
        assert (answer.status, answer.error["code"]) == (413, "request_too_large")
