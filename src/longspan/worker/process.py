"""A worker as a process of its own: the `multiproc` executor's other end."""

from __future__ import annotations

import logging
import os
import queue
import signal
import socket
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

import msgspec

from longspan.errors import ConfigError, LongspanError
from longspan.native.work import CurrentWork
from longspan.worker.messages import (
    Beat,
    Cancel,
    Command,
    Failed,
    Log,
    Reply,
    Stop,
    decode_command,
    encode,
)
from longspan.worker.parent import end_with_parent
from longspan.worker.pinning import pin
from longspan.worker.spec import WorkerSpec

if TYPE_CHECKING:
    from longspan.distributed.tensor_parallel import TensorParallelGroup
    from longspan.distributed.transport import Transport

logger = logging.getLogger(__name__)

BEAT_S = 0.5


def main(
    spec: WorkerSpec, pipe: Connection, place: str, log_level: int, listener: socket.socket | None = None
) -> None:
    """Serve commands from the pipe until `Stop`, an error, or the engine's end.

    place: where workers find shared memory. listener: bound to the spec's `rendezvous_port`; the first worker's only.
    log_level: of what is told to the engine, whose log has it.
    """
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the engine's to handle; it stops us when it is done
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    spec = pin(spec)
    work = CurrentWork()
    line = _Line(pipe, work)
    _log_to(line, log_level)
    # torch is imported here, in the process that needs it.
    from longspan.distributed.across_hosts import address_of
    from longspan.distributed.stream import stream_on
    from longspan.worker.device import resolve_device
    from longspan.worker.stages import agree_on_stages
    from longspan.worker.worker import Worker, failure_message

    try:
        stream = stream_on(resolve_device(spec))
        stream.enter()  # NCCL too goes by the thread's device
        transport, tp = _join(spec, place, listener, work)
        spec = agree_on_stages(spec, transport)
        worker = Worker(spec, transport, tp, on_loading=line.send, stream=stream, tell=line.send, work=work)
        line.start_beating(lambda: Beat(worker.progress.value(), worker.usage()))
        line.send(msgspec.structs.replace(worker.ready(), place=place, address=address_of(transport)))
        while not isinstance(command := line.commands.get(), Stop):
            reply = worker.execute(command)
            if reply is not None:
                line.send(reply)
    except BaseException as error:
        if not isinstance(error, LongspanError):  # what a user can mend is told in a line, by the engine
            logger.exception("it failed")
        line.send(Failed(failure_message(spec, error)))
        os._exit(1)  # peers may wait for us inside gloo or NCCL: no orderly end is left
    os._exit(0)  # likewise: the process group's threads would keep the process for a while


def _join(
    spec: WorkerSpec, place: str, listener: socket.socket | None, work: CurrentWork
) -> tuple[Transport, TensorParallelGroup | None]:
    """Transport and tensor-parallel group in the world of all workers, every pair of which is connected.

    place: the same for all; not needed any more once every worker is ready.
    """
    from longspan.distributed import across_hosts, process_group, shared_memory
    from longspan.distributed.transport import SoleDevice
    from longspan.worker.device import resolve_device, resolve_transport

    if spec.world_size == 1:
        return SoleDevice(), None
    device = resolve_device(spec)
    name = resolve_transport(spec.transport, device)
    if name == "shared_memory":
        if listener is not None:
            listener.close()
        if spec.host is not None:
            transport: shared_memory.SharedMemoryTransport = across_hosts.AcrossHostsTransport(
                place, spec.rank, spec.world_size, spec.host.address, spec.host.token, work=work
            )
        else:
            transport = shared_memory.SharedMemoryTransport(place, spec.rank, spec.world_size, work=work)
        return transport, shared_memory.SharedMemoryTensorParallel(transport, spec.tp) if spec.tp > 1 else None
    if spec.host is not None:
        raise ConfigError(f"workers of several nodes exchange over TCP, on CPUs of x86-64 only so far, not by {name}")
    assert spec.rendezvous_port is not None
    process_group.init_world(name, spec.rank, spec.world_size, spec.rendezvous_port, listener, device)
    distributed = process_group.ProcessTransport(device)
    distributed.connect_all()
    tp = process_group.ProcessTensorParallel(spec.tp, device) if spec.tp > 1 else None
    return distributed, tp


def _log_to(line: _Line, level: int) -> None:
    logging.basicConfig(handlers=[_LineHandler(line)], level=logging.WARNING, force=True)
    logging.getLogger("longspan").setLevel(level)
    logging.captureWarnings(True)


class _LineHandler(logging.Handler):
    """Hands log records to the engine, tracebacks included."""

    def __init__(self, line: _Line) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter("%(message)s"))
        self._line = line

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._line.send(Log(record.levelno, record.name, self.format(record)))
        except OSError:
            return  # the engine is gone


class _Line:
    """The pipe to the engine. A thread empties it at once, so that the engine never waits for a busy worker, and what
    it says of void work is heard in the middle of it."""

    def __init__(self, pipe: Connection, work: CurrentWork) -> None:
        self.pipe = pipe
        self.work = work
        self.commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._sending = threading.Lock()
        threading.Thread(target=self._receive, name="receive", daemon=True).start()

    def send(self, reply: Reply) -> None:
        with self._sending:
            self.pipe.send_bytes(encode(reply))

    def _receive(self) -> None:
        try:
            while True:
                command = decode_command(self.pipe.recv_bytes())
                if isinstance(command, Cancel):
                    self.work.cancel(command.numbers)
                self.commands.put(command)
        except (EOFError, OSError):
            os._exit(0)  # the engine is gone

    def start_beating(self, beats: Callable[[], Beat]) -> None:
        """Tell the engine twice a second how far the worker is."""

        def beat() -> None:
            while True:
                threading.Event().wait(BEAT_S)
                self.send(beats())

        threading.Thread(target=beat, name="beat", daemon=True).start()
