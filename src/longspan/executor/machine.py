"""The machines that workers run on: this one, and others by their agents."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Protocol

from longspan.executor.worker_handle import WorkerHandle
from longspan.worker.spec import Host, WorkerSpec


class Place(Protocol):
    """Where workers meet that are started together."""

    def close(self) -> None:
        """They have met. May be called twice."""
        ...


class Machine(Protocol):
    """Where the workers of some instances are started.

    node: its number; this machine is 0. name: what users read of it. host: where it is; workers exchange through memory
    with those of machines with the same host. address: by which other machines reach it; None where there are none.
    token: what their workers show to those here.
    """

    node: int
    name: str
    host: int
    address: str | None
    token: bytes

    @property
    def is_there(self) -> bool:
        """Whether workers can be started now."""
        ...

    @property
    def is_leaving(self) -> bool:
        """Whether it has been told to stop."""
        ...

    def make_place(self) -> Place:
        """Raises OSError."""
        ...

    def start(self, specs: Sequence[WorkerSpec], place: Place) -> Future[list[WorkerHandle]]:
        """Start a worker for each spec. Fewer come once it is told to start none any more."""
        ...


def node_of(instance: int, num_instances: int, nnodes: int) -> int:
    """Return the machine of an instance: as many on each as can be, neighbours together."""
    return instance * nnodes // num_instances


def on_machine(
    specs: Sequence[WorkerSpec], machine: Machine, all_there: Sequence[WorkerSpec]
) -> Sequence[WorkerSpec]:
    """Return the specs with what is to be known of their machine. all_there: of all workers of its host, in rank order.
    """
    if machine.address is None:
        return specs
    ranks = [spec.rank for spec in all_there]
    return [
        replace(spec, host=Host(
            node=machine.host, address=machine.address, token=machine.token, local_rank=ranks.index(spec.rank),
            local_size=len(ranks),
        ))
        for spec in specs
    ]  # fmt: skip
