"""Serving beyond one machine: clients across a network, and what networks do to them.

Server and clients are in network namespaces of their own, with a cable between them.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from acceptance.cluster.namespaces import Machine, two_machines
from longspan.entrypoints.bind import GONE_AFTER_S
from tests.e2e.conftest import serve, wait_for

KEY = "a-key-for-tests"
BODY = {"model": "smollm2-135m", "prompt": "Once", "stream": True, "temperature": 0, "ignore_eos": True}
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


class Network:
    """A server on one machine, clients on another."""

    def __init__(self, host: Machine, client: Machine, url: str, lines: list[str]) -> None:
        self.host, self.client, self.url, self.lines = host, client, url, lines

    def curl(self, *arguments: str, key: str = KEY, machine: Machine | None = None) -> str:
        return (machine or self.client).run(*self._curl(*arguments, key=key))

    def stream(self, max_tokens: int) -> subprocess.Popen[str]:
        """A client that is being answered."""
        command = self._curl("--no-buffer", "/v1/completions", "--json", json.dumps({**BODY, "max_tokens": max_tokens}))
        started = subprocess.Popen(self.client.command(*command), stdout=subprocess.PIPE, text=True)
        assert started.stdout is not None and started.stdout.readline().startswith("data: ")
        return started

    def busy(self) -> bool:
        """Whether any request is alive or holds KV, by what the host itself sees."""
        text = self.curl("/metrics", machine=self.host)
        names = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")
        return any(float(line.split()[-1]) for line in text.splitlines() if line.startswith(names))

    def connections(self) -> int:
        """From the client's address, established, as the host sees it."""
        return len(self.host.run("ss", "-Htn", "state", "established", "dst", self.client.address).splitlines())

    def _curl(self, *arguments: str, key: str = KEY) -> list[str]:
        paths = [f"{self.url}{argument}" if argument.startswith("/") else argument for argument in arguments]
        return ["curl", "--silent", "--show-error", "--max-time", "200", "--oauth2-bearer", key, *paths]


@contextmanager
def network(*options: str) -> Iterator[Network]:
    with (
        two_machines() as (host, client),
        serve("--host", host.address, *options, on=host.command()) as server,
    ):
        yield Network(host, client, server.url, server.lines)


@pytest.fixture(scope="module")
def net() -> Iterator[Network]:
    with network("--api-key", KEY) as running:
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
