"""vLLM's CPU build as an OpenAI server on the loopback interface, in the environment that suits it (see vllm_cpu.py).

    PEER/bin/python vllm_server.py MODEL_DIR --port PORT [further flags of `vllm serve`]

The engine runs in a process beside the server's, and its worker in another. All cores compute: by default vLLM keeps
one of them back, and an OpenMP that bound the server's own thread to a core would leave its children only that one.
What the caller has set in the environment wins.
"""

from __future__ import annotations

import os
import sys

from vllm_cpu import settle_environment

LOOPBACK = "127.0.0.1"


def main() -> None:
    os.environ.setdefault("VLLM_HOST_IP", LOOPBACK)
    os.environ.setdefault("VLLM_LOOPBACK_IP", LOOPBACK)
    os.environ.setdefault("VLLM_CPU_NUM_OF_RESERVED_CPU", "0")
    os.environ.setdefault("KMP_AFFINITY", "none")
    settle_environment(len(os.sched_getaffinity(0)))
    from vllm.entrypoints.cli.main import main as vllm  # type: ignore[import-not-found]  # installed beside, not in this environment

    sys.argv = ["vllm", "serve", *sys.argv[1:], "--host", LOOPBACK]
    vllm()


if __name__ == "__main__":
    main()
