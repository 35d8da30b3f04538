"""The engine's end of one worker."""

from __future__ import annotations

import signal
import threading
import time
from abc import ABC, abstractmethod
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess

from longspan.executor.outbox import Outbox
from longspan.executor.vitals import Vitals
from longspan.worker.messages import Command
from longspan.worker.spec import WorkerSpec
from longspan.worker_usage import WorkerUsage

_END_S = 10.0  # a process that has been killed is gone at once, unless the kernel itself is stuck with it


class WorkerHandle(ABC):
    """A worker, the way to it, and what is known of it.

    vitals: whether it lives. usage: what it said of itself last. is_fenced: nothing that it says counts any more.
    """

    def __init__(self, spec: WorkerSpec, vitals: Vitals) -> None:
        self.spec = spec
        self.vitals = vitals
        self.usage: WorkerUsage | None = None
        self.is_fenced = False
        self._pending = 0  # commands sent that it will answer, and has not
        self._counting = threading.Lock()  # one thread sends, another reads

    @property
    @abstractmethod
    def pid(self) -> int:
        """The id of its process, on its machine."""

    @property
    def has_work(self) -> bool:
        return self._pending > 0

    def send(self, command: Command, data: bytes) -> None:
        """Queue a command, encoded as `data`. Raises OSError if the worker is known to have ended."""
        if self.spec.answers(command):
            with self._counting:
                if self._pending == 0:
                    self.vitals.moves(time.monotonic())
                self._pending += 1
        self._send(data)

    def answered(self) -> None:
        """An answer has come."""
        with self._counting:
            self._pending -= 1

    @abstractmethod
    def fence(self) -> None:
        """End it for certain, also if it is stopped: nothing that it has said or says from now on counts."""

    @property
    @abstractmethod
    def has_crashed(self) -> bool:
        """Of a worker that has ended: not by being killed from outside."""

    @abstractmethod
    def end_message(self) -> str:
        """Return how it ended, of a worker that has by itself."""

    @abstractmethod
    def _send(self, data: bytes) -> None: ...


class ProcessHandle(WorkerHandle):
    """Of a process that this one has started. timeout_s: see `Vitals`."""

    def __init__(self, spec: WorkerSpec, process: SpawnProcess, pipe: Connection, timeout_s: float) -> None:
        assert process.pid is not None
        super().__init__(spec, Vitals(process.pid, timeout_s, time.monotonic()))
        self.process = process
        self.pipe = pipe
        self._outbox = Outbox(pipe)

    @property
    def pid(self) -> int:
        return self.process.pid or 0

    def fence(self) -> None:
        self.process.kill()
        self.process.join(_END_S)
        self._outbox.close()
        self.is_fenced = True

    def _send(self, data: bytes) -> None:
        self._outbox.send(data)

    @property
    def has_crashed(self) -> bool:
        return self.process.exitcode != -signal.SIGKILL

    def end_message(self) -> str:
        self.process.join(1.0)
        code = self.process.exitcode
        message = f"{self.spec.name} ended unexpectedly (exit code {code})"
        if code == -signal.SIGKILL:
            return (
                f"{message}: it was killed from outside, as the system does where memory runs out (its log would say "
                "so); if it was that, use fewer --instances or --kv-tokens, a smaller model, or --quantization int8"
            )
        if code is not None and code < 0:
            reason = signal.strsignal(-code)
            return f"{message}: it crashed ({reason}); LONGSPAN_CPU_ISA=torch runs without the kernels of this package"
        return message
