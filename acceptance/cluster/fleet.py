"""An engine over two machines, each with an instance of the real model, and what it is asked."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence

from acceptance.cluster.namespaces import Machine
from acceptance.cluster.network import Network
from tests.e2e.conftest import SETTLE_S, Server, wait_for

TIMEOUT_S = 8
"""Of silence: more than an agent on a loaded machine is ever kept from speaking."""
OPTIONS = ("--dtype", "float32", "--threads-per-device", "1", "--kv-tokens", "4000", "--policy", "elastic_fcfs",
           "--min-tokens-per-instance", "32", "--worker-timeout-s", str(TIMEOUT_S))  # fmt: skip
PROMPTS = ["Once upon a time " * count for count in (2, 30, 100)]
TOKENS = 48


class Fleet:
    """A server on one machine, with an instance on the other, too."""

    def __init__(self, host: Machine, other: Machine, server: Server) -> None:
        self.host, self.other, self.server = host, other, server
        self.net = Network(host, other, server.url, server.lines)

    def ask(self, prompt: str) -> str:
        """Its greedy continuation, by a client on the server's machine."""
        body = {"model": "smollm2-135m", "prompt": prompt, "temperature": 0, "ignore_eos": True, "max_tokens": TOKENS}
        answer = json.loads(self.net.curl("/v1/completions", "--json", json.dumps(body), machine=self.host))
        return str(answer["choices"][0]["text"])

    def ask_all(self) -> list[str]:
        return [self.ask(prompt) for prompt in PROMPTS]

    def state(self) -> tuple[str, int]:
        """Of the instance on the other machine: its state, and how often it was started again."""
        here, there = json.loads(self.net.curl("/fleet", machine=self.host))["instances"]
        assert here["node"] != there["node"]
        return there["state"], there["restarts"]

    def wait_until(self, restarts: int) -> None:
        wait_for(lambda: self.state() == ("serving", restarts))

    def health(self) -> str:
        return str(json.loads(self.net.curl("/health", machine=self.host))["status"])


class Asked:
    """All prompts, asked at once, which are being answered."""

    def __init__(self, fleet: Fleet) -> None:
        self._answers: dict[str, str] = {}
        self._threads = [threading.Thread(target=self._ask, args=(fleet, prompt)) for prompt in PROMPTS]
        for thread in self._threads:
            thread.start()
        wait_for(fleet.net.busy)

    def _ask(self, fleet: Fleet, prompt: str) -> None:
        self._answers[prompt] = fleet.ask(prompt)

    def answers(self) -> Sequence[str]:
        for thread in self._threads:
            thread.join(SETTLE_S)
        return [self._answers[prompt] for prompt in PROMPTS]
