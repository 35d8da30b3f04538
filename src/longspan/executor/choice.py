"""Which executor a name means."""

from __future__ import annotations

from longspan.config import EngineConfig
from longspan.executor.base import Executor
from longspan.executor.nodes.gathering import Nodes
from longspan.worker.spec import WorkerSpec


def make_executor(
    config: EngineConfig, specs: list[WorkerSpec], nodes: Nodes | None = None
) -> Executor:
    """Return the executor that the configuration names, over one worker for each spec, in rank order.

    nodes: the other machines; None: there are none.
    """
    if config.executor == "inproc":
        from longspan.executor.inproc import InprocExecutor

        return InprocExecutor(specs)
    from longspan.executor.multiproc import MultiprocExecutor

    return MultiprocExecutor(specs, config.worker_timeout_s, config.max_restarts, config.restart_window_s, nodes)
