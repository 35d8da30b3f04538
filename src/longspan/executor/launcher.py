"""Where workers start: on one thread that lives as long as they are to, for the kernel ends them with it."""

from __future__ import annotations

import logging
import multiprocessing
import os
import queue
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace

from longspan.executor.machine import Place
from longspan.executor.meeting_place import MeetingPlace
from longspan.executor.worker_handle import ProcessHandle, WorkerHandle
from longspan.interrupts import hold_back_interrupts
from longspan.worker import process
from longspan.worker.spec import WorkerSpec

WORKER_ENVIRONMENT = {
    # glibc then asks for large pages. A decode step walks through all weights; small pages cost it a tenth in page
    # tables.
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    # A worker's threads wait for each other some hundred times in an iteration. By default they spin for a millisecond:
    # beside another program that keeps from its core the very thread that is waited for, fifteen times as slow. So they
    # sleep sooner; on an idle machine that costs nothing that can be measured.
    "GOMP_SPINCOUNT": "5000",
}
_ADDING = threading.Lock()


class Launcher:
    """`Machine` of this program: it starts worker processes.

    timeout_s: see `Vitals`. log_level: of what workers tell; None: of what this program tells. handles: all that were
    started and are not fenced.
    """

    is_there, is_leaving = True, False

    def __init__(
        self, timeout_s: float, node: int = 0, address: str | None = None, token: bytes = b"",
        log_level: int | None = None,
    ) -> None:  # fmt: skip
        self._log_level = log_level
        self.node = self.host = node
        self.name = f"node {node}"
        self.address, self.token = address, token
        self.handles: list[ProcessHandle] = []
        self._timeout_s = timeout_s
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._spawning, self._queueing = threading.Lock(), threading.Lock()
        self._closed = self._ended = False
        threading.Thread(target=self._work, name="workers' parent", daemon=True).start()

    def make_place(self) -> MeetingPlace:
        return MeetingPlace()

    def start(self, specs: Sequence[WorkerSpec], place: Place) -> Future[list[WorkerHandle]]:
        """Start a worker for each spec; they find shared memory in `place`. Fewer come once `close` has been called."""
        assert isinstance(place, MeetingPlace)
        started: Future[list[WorkerHandle]] = Future()

        def run() -> None:
            try:
                with self._spawning:
                    handles = self._start(specs, place)
            except BaseException as error:
                started.set_exception(error)
            else:
                started.set_result(handles)

        with self._queueing:
            if self._ended:
                started.set_result([])
            else:
                self._jobs.put(run)
        return started

    def close(self) -> None:
        """Start no more; returns when the last one has started. Those that run go on until `end`."""
        self._closed = True
        with self._spawning:
            return

    def end(self) -> None:
        """Let the thread end, and with it what workers there may still be."""
        with self._queueing:
            self._ended = True
            self._jobs.put(None)

    def _work(self) -> None:
        # Until they ignore it, Ctrl-C, which is the engine's to handle, is held back in the workers that begin here.
        hold_back_interrupts()
        while (job := self._jobs.get()) is not None:
            job()

    def _start(self, specs: Sequence[WorkerSpec], place: MeetingPlace) -> list[WorkerHandle]:
        self.handles = [handle for handle in self.handles if not handle.is_fenced]
        handles: list[WorkerHandle] = []
        context = multiprocessing.get_context("spawn")
        own_level = logging.getLogger("longspan").getEffectiveLevel()
        log_level = own_level if self._log_level is None else self._log_level
        with default_environment(WORKER_ENVIRONMENT), socket.create_server(("127.0.0.1", 0)) as listener:
            port: int = listener.getsockname()[1]
            for spec in specs:
                if self._closed:
                    break
                ours, theirs = context.Pipe()
                meeting = listener if spec.rank == 0 and spec.world_size > 1 and spec.host is None else None
                arguments = (replace(spec, rendezvous_port=port), theirs, str(place.path), log_level, meeting)
                worker = context.Process(target=process.main, args=arguments, name=spec.name, daemon=True)
                worker.start()
                theirs.close()
                handle = ProcessHandle(spec, worker, ours, self._timeout_s)
                handles.append(handle)
                self.handles.append(handle)
        return handles


@contextmanager
def default_environment(variables: dict[str, str]) -> Iterator[None]:
    """For processes started meanwhile; what the user has set stays. One at a time: who comes second waits.

    `os.environ` stays as it is: other threads import libraries meanwhile, some of which put back what they saw before.
    """
    with _ADDING:
        added = {name: value for name, value in variables.items() if name not in os.environ}
        for name, value in added.items():
            os.putenv(name, value)
        try:
            yield
        finally:
            for name in added:
                os.unsetenv(name)
