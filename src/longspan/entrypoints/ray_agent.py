"""The agent of an instance that Ray has placed: `python -m longspan.entrypoints.ray_agent PARENT`, with its order on
standard input. What it says last, on standard output, is why it ends."""

from __future__ import annotations

import os
import sys

import msgspec

from longspan.config import EngineConfig
from longspan.entrypoints.node import run_agent
from longspan.entrypoints.server_config import ServerConfig
from longspan.errors import LongspanError
from longspan.executor.ray.messages import AgentOrder
from longspan.worker.parent import end_with_parent


def main(parent: int) -> int:
    """parent: the process to end with. Returns what the process is to end with."""
    end_with_parent()
    if os.getppid() != parent:
        return 1  # it ended before the kernel knew
    order = msgspec.json.decode(sys.stdin.buffer.read(), type=AgentOrder)
    pp_layers = order.settings.pop("pp_layers")
    try:
        config = EngineConfig(**order.settings, pp_layers=None if pp_layers is None else tuple(pp_layers))
        return run_agent(
            config, ServerConfig(), host=order.host, port=order.port, key=order.key.encode(), node=order.node,
            own_host=order.own_host, threads=order.threads,
        )  # fmt: skip
    except LongspanError as error:
        print(" ".join(str(error).split()))
        return 2


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
