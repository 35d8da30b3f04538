"""One process for each device of this machine.

A worker that dies is noticed at once, by its process handle; one that hangs, by its beats: none come, or their
progress stands still while it has work. Either way every worker is ended, since its peers wait for it.
"""

from __future__ import annotations

import atexit
import logging
import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

from longspan.errors import EngineDeadError
from longspan.executor.base import DeviceInfo
from longspan.executor.meeting_place import MeetingPlace
from longspan.executor.workers_loading import WorkersLoading
from longspan.interrupts import hold_back_interrupts
from longspan.phases import OnPhase, ignore
from longspan.worker import process
from longspan.worker.messages import (
    AllocateKV,
    BatchDone,
    Beat,
    Command,
    Failed,
    FirstStageDone,
    KVAllocated,
    Loading,
    Log,
    MigrationDone,
    Ready,
    Reply,
    Stop,
    WorkerSpec,
    decode_reply,
    encode,
)

logger = logging.getLogger(__name__)

_CHECK_S = 0.5  # how often beats are looked at
_GRACE_S = 5.0  # for workers to end by themselves
WORKER_ENVIRONMENT = {
    # glibc then asks for large pages. A decode step walks through all weights; small pages cost it a tenth in page
    # tables.
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    # A worker's threads wait for each other some hundred times in an iteration. By default they spin for a millisecond:
    # beside another program that keeps from its core the very thread that is waited for, fifteen times as slow. So they
    # sleep sooner; on an idle machine that costs nothing that can be measured.
    "GOMP_SPINCOUNT": "5000",
}


@dataclass(slots=True)
class _Handle:
    """The engine's end of one worker."""

    spec: WorkerSpec
    process: SpawnProcess
    pipe: Connection
    pending: int = 0  # commands sent that it will answer, and has not
    progress: int = -1
    last_beat: float = 0.0
    last_progress: float = 0.0
    counting: threading.Lock = field(default_factory=threading.Lock)  # of `pending`: one thread sends, another reads
    sending: threading.Lock = field(default_factory=threading.Lock)  # may be held for long: a full pipe waits

    def send(self, command: Command, data: bytes) -> None:
        if self.spec.answers(command):
            with self.counting:
                if self.pending == 0:
                    self.last_progress = time.monotonic()
                self.pending += 1
        with self.sending:
            self.pipe.send_bytes(data)

    def answered(self) -> None:
        with self.counting:
            self.pending -= 1

    def end_message(self) -> str:
        """Of a worker that has ended by itself."""
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


class MultiprocExecutor:
    """`Executor` over processes of this machine."""

    def __init__(self, specs: list[WorkerSpec], worker_timeout_s: float) -> None:
        self.specs = specs
        self.timeout_s = worker_timeout_s
        self.handles: list[_Handle] = []
        self.started: list[Ready] = []
        self.num_allocated = 0
        self.startup = threading.Condition()
        self.failure: str | None = None
        self.closing = False
        self.spawning = threading.Lock()
        self.told: set[tuple[str, str]] = set()
        self.over = threading.Event()
        self.place = MeetingPlace()
        self.reader: threading.Thread | None = None

    def start(
        self, on_reply: Callable[[Reply], None], on_failure: Callable[[str], None], on_phase: OnPhase = ignore
    ) -> DeviceInfo:
        self.on_reply, self.on_failure = on_reply, on_failure
        self.loading = WorkersLoading(len(self.specs), on_phase)
        # The kernel ends workers with the thread that started them: it lives as long as they are to.
        atexit.register(self._abandon)  # a program that ends without `close` would wait for them
        started: Future[None] = Future()
        threading.Thread(target=self._parent, args=(started,), name="workers' parent", daemon=True).start()
        started.result()
        with self.spawning:  # `close`, from another thread, joins what has started
            if not self.closing:
                self.reader = threading.Thread(target=self._read, name="executor", daemon=True)
                self.reader.start()
        self._wait_for(lambda: len(self.started) == len(self.specs))
        self.place.close()  # they have met
        now = time.monotonic()
        for handle in self.handles:
            handle.last_beat = now
        return DeviceInfo.of(self.started)

    def _parent(self, started: Future[None]) -> None:
        # Until they ignore it, Ctrl-C, which is the engine's to handle, is held back in the workers that begin here.
        hold_back_interrupts()
        try:
            with self.spawning:
                self._start_processes()
        except BaseException as error:
            started.set_exception(error)
            return
        started.set_result(None)
        self.over.wait()

    def _start_processes(self) -> None:
        context = multiprocessing.get_context("spawn")
        log_level = logging.getLogger("longspan").getEffectiveLevel()
        with default_environment(WORKER_ENVIRONMENT), socket.create_server(("127.0.0.1", 0)) as listener:
            port: int = listener.getsockname()[1]
            self.specs = [replace(spec, rendezvous_port=port) for spec in self.specs]
            for spec in self.specs:
                if self.closing:
                    return
                ours, theirs = context.Pipe()
                meeting = listener if spec.rank == 0 and spec.world_size > 1 else None
                arguments = (spec, theirs, str(self.place.path), log_level, meeting)
                worker = context.Process(target=process.main, args=arguments, name=spec.name, daemon=True)
                worker.start()
                theirs.close()
                self.handles.append(_Handle(spec, worker, ours))

    def allocate_kv(self, num_tokens: int) -> None:
        for instance in range(self.specs[0].num_instances):
            self.submit(instance, AllocateKV(num_tokens))
        self._wait_for(lambda: self.num_allocated == len(self.specs))

    def submit(self, instance: int, command: Command) -> None:
        data = encode(command)
        devices = self.specs[0].pp * self.specs[0].tp
        for handle in self.handles[instance * devices : (instance + 1) * devices]:
            with suppress(OSError):  # it has ended, as the reader is about to find out, with the reason
                handle.send(command, data)

    def close(self) -> None:
        with self.startup:
            if self.closing:
                return
            self.closing = True
            self.startup.notify_all()
        with self.spawning:  # a thread that was starting them has started its last
            pass
        stop = encode(Stop())
        for handle in self.handles:
            try:
                handle.send(Stop(), stop)
            except OSError:
                continue  # it has ended already
        deadline = time.monotonic() + _GRACE_S
        for handle in self.handles:
            handle.process.join(max(0.0, deadline - time.monotonic()))
        self._kill()
        for handle in self.handles:
            handle.process.join(_GRACE_S)
        atexit.unregister(self._abandon)
        if self.reader is not None:
            self.reader.join(_GRACE_S)
        self.place.close()
        self.over.set()

    def _wait_for(self, condition: Callable[[], bool]) -> None:
        with self.startup:
            self.startup.wait_for(lambda: condition() or self.failure is not None or self.closing)
        if self.failure is not None or self.closing:
            self.close()
            atexit.unregister(self._abandon)  # if a `close` from another thread came before it was registered
            raise EngineDeadError(self.failure or "closed while it was starting")

    def _read(self) -> None:
        """The reader thread: replies, deaths, beats."""
        by_pipe = {handle.pipe: handle for handle in self.handles}
        by_sentinel = {handle.process.sentinel: handle for handle in self.handles}
        while self.failure is None and not self.closing:
            ended = None
            for source in wait([*by_pipe, *by_sentinel], timeout=_CHECK_S):
                if isinstance(source, Connection):
                    try:
                        self._take(by_pipe[source], decode_reply(source.recv_bytes()))
                    except (EOFError, OSError):
                        ended = by_pipe[source]
                else:
                    ended = by_sentinel[source]  # type: ignore[index]  # a sentinel is an int here
            if ended is not None and not self.closing:
                self._drain(ended)
                self._fail(ended.end_message())
            self._check_beats()

    def _drain(self, handle: _Handle) -> None:
        """What a worker said before it ended says more than its exit code."""
        try:
            while handle.pipe.poll():
                self._take(handle, decode_reply(handle.pipe.recv_bytes()))
        except (EOFError, OSError):
            return

    def _take(self, handle: _Handle, reply: Reply) -> None:
        match reply:
            case Beat(progress):
                handle.last_beat = time.monotonic()
                if progress != handle.progress:
                    handle.progress, handle.last_progress = progress, handle.last_beat
            case Log():
                self._log(handle, reply)
            case Failed(message):
                self._fail(message)
            case Loading():
                self.loading.take(handle.spec.rank, reply)
            case Ready():
                with self.startup:
                    self.started.append(reply)
                    self.startup.notify_all()
            case KVAllocated():
                with self.startup:
                    self.num_allocated += 1
                    self.startup.notify_all()
            case FirstStageDone() | BatchDone() | MigrationDone():
                handle.answered()
                self.on_reply(reply)

    def _log(self, handle: _Handle, line: Log) -> None:
        """In this program's own log, and format. What all workers tell while they load, the first one tells."""
        target = logging.getLogger(line.logger)
        if not target.isEnabledFor(line.level):
            return
        if len(self.started) < len(self.specs) and line.level <= logging.INFO:
            if (line.logger, line.text) in self.told:
                return
            self.told.add((line.logger, line.text))
        target.log(line.level, "%s: %s", handle.spec.name, line.text)

    def _check_beats(self) -> None:
        if self.num_allocated < len(self.specs):
            return  # loading a model may take any time
        now = time.monotonic()
        for handle in self.handles:
            if now - handle.last_beat > self.timeout_s:
                self._fail(f"{handle.spec.name} gave no sign of life for {self.timeout_s:.0f} s")
            elif handle.pending and now - handle.last_progress > self.timeout_s:
                self._fail(f"{handle.spec.name} made no progress for {self.timeout_s:.0f} s")

    def _fail(self, message: str) -> None:
        if self.failure is not None or self.closing:
            return
        logger.error("%s", message)
        with self.startup:
            self.failure = message
            self.startup.notify_all()
        self._kill()
        self.on_failure(message)

    def _abandon(self) -> None:
        self.closing = True
        self._kill()
        self.place.close()

    def _kill(self) -> None:
        for handle in self.handles:
            if handle.process.is_alive():
                handle.process.kill()


@contextmanager
def default_environment(variables: dict[str, str]) -> Iterator[None]:
    """For processes started meanwhile; what the user has set stays."""
    added = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)  # a library that loads meanwhile may have put back what it saw before
