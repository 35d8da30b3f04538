"""A server in one network namespace, clients in another."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from acceptance.cluster.namespaces import Machine, two_machines
from tests.e2e.conftest import serve

KEY = "a-key-for-tests"
BODY = {"model": "smollm2-135m", "prompt": "Once", "stream": True, "temperature": 0, "ignore_eos": True}


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
