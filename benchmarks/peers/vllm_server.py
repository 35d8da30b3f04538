"""vLLM's CPU build as an OpenAI server on the loopback interface, in the environment that suits it (see vllm_cpu.py).

    PEER/bin/python vllm_server.py MODEL_DIR --port PORT [further flags of `vllm serve`]

The engine runs in one process beside the server's, and so does its worker: as a process of its own it would spin on a
core while the model computes. What the caller has set in the environment wins.
"""

from __future__ import annotations

import os
import sys

from vllm_cpu import settle_environment

LOOPBACK = "127.0.0.1"


def main() -> None:
    os.environ.setdefault("VLLM_HOST_IP", LOOPBACK)
    os.environ.setdefault("VLLM_LOOPBACK_IP", LOOPBACK)
    settle_environment(len(os.sched_getaffinity(0)))
    from vllm.entrypoints.cli.main import main as vllm  # type: ignore[import-not-found]

    sys.argv = ["vllm", "serve", *sys.argv[1:], "--host", LOOPBACK]
    vllm()


if __name__ == "__main__":
    main()
