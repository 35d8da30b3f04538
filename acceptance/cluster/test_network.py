"""Serving beyond one machine: clients across a network, and what networks do to them.

Server and clients are in network namespaces of their own, with a cable between them.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator

import pytest

from acceptance.cluster.network import BODY, KEY, Network, network
from longspan.entrypoints.bind import GONE_AFTER_S
from tests.e2e.conftest import wait_for

NOTICED_S = 3.0 * GONE_AFTER_S
"""For the server to notice that nobody is there; only to end a broken test."""

HOLD = """
import socket, sys
held = [socket.create_connection((sys.argv[1], int(sys.argv[2]))) for _ in range(5)]
held[0].sendall(b"POST /v1/completions HTTP/1.1\\r\\nHost: x\\r\\nContent-Le")
print("there", flush=True)
sys.stdin.read()
"""
"""Connections that ask nothing, or not to the end."""


@pytest.fixture(scope="module")
def net() -> Iterator[Network]:
    with network("--api-key", KEY, "--dtype", "float32") as running:  # in which the same text comes again for certain
        yield running


@pytest.fixture(autouse=True)
def as_before(net: Network) -> Iterator[None]:
    yield
    net.client.plug()


def test_who_has_the_key_is_served(net: Network) -> None:
    assert json.loads(net.curl("/v1/models"))["data"][0]["id"] == BODY["model"]
    assert json.loads(net.curl("/v1/models", key="wrong"))["error"]["code"] == "invalid_api_key"
    assert not [line for line in net.lines if "may use this server" in line]
    assert KEY not in "".join(net.lines)


def test_without_a_key_it_warns() -> None:
    with network() as open_to_all:
        assert json.loads(open_to_all.curl("/v1/models"))["data"]
        assert [line for line in open_to_all.lines if "give --api-key" in line]


def test_a_cut_cable_frees_the_kv(net: Network) -> None:
    """The client is gone in mid-stream, without a word. The answer would go on for minutes."""
    client = net.stream(max_tokens=8000)
    try:
        assert net.busy()
        net.client.cut()
        wait_for(lambda: not net.busy(), NOTICED_S)
    finally:
        client.kill()
        client.communicate()


def test_a_loose_cable_loses_nothing(net: Network) -> None:
    """What is sent while it is out is sent again; the text is that of a good one."""
    whole = net.curl("/v1/completions", "--json", json.dumps({**BODY, "max_tokens": 200}))
    client = net.stream(max_tokens=200)
    while client.poll() is None and net.busy():
        net.client.cut()
        net.client.plug()
    out, _ = client.communicate(timeout=200)
    assert client.returncode == 0
    assert text_of(out) == text_of(whole)


def text_of(stream: str) -> list[str]:
    """The pieces of a stream but its first, which `Network.stream` has read."""
    *pieces, last = [line.removeprefix("data: ") for line in stream.split("\n") if line]
    assert last == "[DONE]"
    return [choice["text"] for piece in pieces for choice in json.loads(piece)["choices"]][-199:]


def test_silent_connections_do_not_stay(net: Network) -> None:
    """Connections that have asked nothing yet, whose other end is gone."""
    port = net.url.rsplit(":", 1)[1]
    holder = subprocess.Popen(
        net.client.command("python3", "-c", HOLD, net.host.address, port),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "there\n"
        wait_for(lambda: net.connections() == 5, NOTICED_S)
        net.client.cut()
        wait_for(lambda: net.connections() == 0, NOTICED_S)
    finally:
        holder.kill()
        holder.communicate()
