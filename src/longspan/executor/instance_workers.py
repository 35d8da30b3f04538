"""The workers of one instance: those that are there, and when others are to come in their place."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Literal

from longspan.executor.base import InstanceReport, InstanceState
from longspan.executor.machine import Machine, Place
from longspan.executor.restarts import Restarts
from longspan.executor.worker_handle import WorkerHandle
from longspan.worker.messages import Link, Ready
from longspan.worker.spec import WorkerSpec

Stage = Literal["waiting", "loading", "linking", "serving", "missing"]
"""waiting: to be started at `due`. loading: until its pool is there. linking: until all others exchange with it.
serving: the engine has been told of it. missing: it is not started again by itself."""

_STATES: dict[Stage, InstanceState] = {
    "waiting": "starting", "loading": "starting", "linking": "starting", "serving": "serving", "missing": "missing",
}  # fmt: skip


class InstanceWorkers:
    """One instance. All but `admitted` and `report` is for the thread that hears its workers.

    admitted: commands go through to its workers. stage_since: when it came to its stage. place: where its workers meet
    others, until they have. unlinked: ranks of other instances that have yet to exchange with it. machine: where they
    are started. awaits_machine: it comes again with its machine, by itself.
    """

    def __init__(self, specs: list[WorkerSpec], restarts: Restarts, machine: Machine) -> None:
        self.number = specs[0].instance
        self.specs = specs
        self.machine = machine
        self.awaits_machine = False
        self.restarts = restarts
        self.handles: list[WorkerHandle] = []
        self.stage: Stage = "loading"
        self.stage_since = 0.0
        self.due = 0.0
        self.admitted = True
        self.why = ""
        self.num_starts = 1
        self._clear()

    def _clear(self) -> None:
        self.ready: dict[int, Ready] = {}  # by rank
        self.num_allocated = 0
        self.place: Place | None = None
        self.starting: Future[list[WorkerHandle]] | None = None
        self.unlinked: set[int] = set()

    @property
    def is_loaded(self) -> bool:
        return len(self.ready) == len(self.specs)

    @property
    def is_allocated(self) -> bool:
        return self.num_allocated == len(self.specs)

    def go(self, stage: Stage, now: float) -> None:
        self.stage, self.stage_since = stage, now

    def announce(self) -> None:
        """It is one more, and has yet to be started."""
        self.admitted, self.stage, self.why = False, "missing", "it has been added, and loads"
        self.num_starts = 0

    def end(self, why: str) -> None:
        """End what workers there are, for certain."""
        self.admitted = False
        for handle in self.handles:
            handle.fence()
        self.handles = []
        self.leave_place()
        self._clear()
        self.why = why

    def link(self) -> Link:
        """Return how others come to exchange with it, once it is loaded."""
        ready = [self.ready[spec.rank] for spec in self.specs]
        addresses = tuple([one.address for one in ready if one.address is not None])
        return Link(self.number, ready[0].place, self.machine.host, addresses)

    def come_again(self, now: float, delay_s: float | None) -> None:
        """Have others come in so many seconds; None: none come by themselves."""
        self.due = now + (delay_s or 0.0)
        self.go("missing" if delay_s is None else "waiting", now)

    def leave_place(self) -> None:
        """All have met: what they map stays."""
        if self.place is not None:
            self.place.close()
            self.place = None

    def report(self) -> InstanceReport:
        pids = tuple([handle.pid for handle in self.handles])
        return InstanceReport(
            self.number, _STATES[self.stage], self.why, max(0, self.num_starts - 1), pids, self.machine.host
        )  # fmt: skip
