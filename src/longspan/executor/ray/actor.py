"""What Ray runs for an instance: an actor that holds its CPUs, and watches the agent, which is a process of its own.

It is imported on the node that Ray has chosen, where another version may be installed: `begin` is what all have.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys

from longspan import __version__


class InstanceActor:
    """Ends with the process that asked Ray for it; its agent ends with it."""

    def begin(self, version: str) -> tuple[str, str, str]:
        """Return the id and the address of its node; and why it cannot be of use there, empty where it can."""
        import ray

        wrong = "" if version == __version__ else f"longspan is {__version__} there, and {version} on the server's node"
        return ray.get_runtime_context().get_node_id(), ray.util.get_node_ip_address(), wrong

    def run(self, order: bytes) -> tuple[int, str]:
        """Have an agent do as an `AgentOrder` says, and wait for its end. Returns its exit code, and its last word.

        The order comes by a pipe: others may see a command line, and an environment goes on to every process below.
        """
        import ray

        gpus = ",".join(str(gpu) for gpu in ray.get_gpu_ids())
        agent = subprocess.Popen(
            [sys.executable, "-m", "longspan.entrypoints.ray_agent", str(os.getpid())], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, env={**os.environ, "CUDA_VISIBLE_DEVICES": gpus},
        )  # fmt: skip
        said, _ = agent.communicate(order)
        *_, last = ["", *said.decode(errors="replace").splitlines()]
        return agent.returncode, last or f"see Ray's log of process {os.getpid()} on {platform.node()}"
