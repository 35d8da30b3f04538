"""Which executor a name means."""

from __future__ import annotations

from longspan.executor.base import Executor
from longspan.worker.messages import WorkerSpec


def make_executor(name: str, specs: list[WorkerSpec], worker_timeout_s: float) -> Executor:
    """Return the executor of that name, over one worker for each spec, in rank order."""
    if name == "inproc":
        from longspan.executor.inproc import InprocExecutor

        return InprocExecutor(specs)
    from longspan.executor.multiproc import MultiprocExecutor

    return MultiprocExecutor(specs, worker_timeout_s)
