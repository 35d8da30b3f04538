"""Instances as threads of this process: tests, debugging, or several instances on one GPU.

Instances share one copy of the weights.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial

from longspan.errors import EngineDeadError, LongspanError
from longspan.executor.base import DeviceInfo, InstanceReport, News
from longspan.executor.workers_loading import WorkersLoading
from longspan.phases import OnPhase, ignore
from longspan.worker.messages import (
    AllocateKV,
    Command,
    KVAllocated,
    Ready,
    Stop,
    decode_command,
    encode,
)
from longspan.worker.spec import WorkerSpec
from longspan.worker_usage import WorkerUsage

logger = logging.getLogger(__name__)


class InprocExecutor:
    """`Executor` over threads."""

    def __init__(self, specs: list[WorkerSpec]) -> None:
        self.specs = [replace(spec, shares_devices=True) for spec in specs]
        self.per_instance = specs[0].pp * specs[0].tp
        self.inboxes: list[queue.SimpleQueue[Command]] = [queue.SimpleQueue() for _ in specs]
        self.startup: queue.SimpleQueue[Ready | KVAllocated | str] = queue.SimpleQueue()
        self.threads: list[threading.Thread] = []
        self.failed = threading.Event()
        self.asked: dict[int, Callable[[], WorkerUsage]] = {}  # by rank

    def start(
        self, on_reply: Callable[[News], None], on_failure: Callable[[str], None], on_phase: OnPhase = ignore
    ) -> DeviceInfo:
        # torch comes with the workers, not with the executor.
        from longspan.distributed.local import LocalTensorParallel, LocalTransport, LocalWorld
        from longspan.distributed.stream import stream_on
        from longspan.worker.device import resolve_device
        from longspan.worker.stages import measured_stages
        from longspan.worker.worker import Worker, failure_message

        self.on_reply, self.on_failure = on_reply, on_failure
        loading = WorkersLoading(self.per_instance, on_phase)
        if self.specs[0].pp > 1 and self.specs[0].pp_layers is None:
            layers = measured_stages(self.specs[0]).pp_layers
            self.specs = [replace(spec, pp_layers=layers) for spec in self.specs]
        self.world = LocalWorld(len(self.specs), self.specs[0].tp)
        shared: list[Worker] = []  # the first instance's workers, whose weights all others use
        for spec in self.specs[: self.per_instance]:
            take = partial(loading.take, spec.rank)
            shared.append(Worker(spec, LocalTransport(self.world, spec.rank), on_loading=take))

        def serve(spec: WorkerSpec) -> None:
            try:
                stream = stream_on(resolve_device(spec))  # of this thread
                tp = LocalTensorParallel(self.world, spec.rank, stream) if spec.tp > 1 else None
                transport = LocalTransport(self.world, spec.rank, stream)
                model = shared[spec.rank % self.per_instance].model
                worker = Worker(spec, transport, tp, model, stream=stream, tell=on_reply)
                self.asked[spec.rank] = worker.thread_usage
                self.startup.put(worker.ready())
                while not isinstance(command := self.inboxes[spec.rank].get(), Stop):
                    reply = worker.execute(command)
                    if isinstance(reply, KVAllocated):
                        self.startup.put(reply)
                    elif reply is not None:
                        on_reply(reply)
            except BaseException as error:
                self._fail(failure_message(spec, error), error)
            finally:
                self.asked.pop(spec.rank, None)

        self.threads = [
            threading.Thread(target=serve, args=(spec,), name=spec.name, daemon=True) for spec in self.specs
        ]
        for thread in self.threads:
            thread.start()
        replies = [self._startup_reply() for _ in self.specs]
        ready = [reply for reply in replies if isinstance(reply, Ready)]
        return DeviceInfo.of(ready)

    def allocate_kv(self, num_tokens: int) -> None:
        for inbox in self.inboxes:
            inbox.put(AllocateKV(num_tokens))
        for _ in self.specs:
            self._startup_reply()

    def survive_losses(self) -> bool:
        return False  # threads end together

    def submit(self, instance: int, command: Command) -> None:
        # Through the codec, as on a wire: no two workers share an object.
        data = encode(command)
        for rank in range(instance * self.per_instance, (instance + 1) * self.per_instance):
            self.inboxes[rank].put(decode_command(data))

    def admit(self, instance: int) -> None:
        raise AssertionError("instances that are threads end together")

    def end(self, instance: int, why: str, *, again: bool) -> None:
        raise AssertionError("instances that are threads end together")

    def add(self) -> int:
        raise AssertionError("instances that are threads begin together")

    def restart(self, instance: int) -> None:
        raise AssertionError("instances that are threads end together")

    def reports(self) -> list[InstanceReport]:
        return [InstanceReport(number, "serving") for number in range(self.specs[0].num_instances)]

    def usage(self) -> tuple[WorkerUsage, ...]:
        found = []
        for _, ask in sorted(self.asked.items()):
            with suppress(OSError):  # its thread has ended since
                found.append(ask())
        return tuple(found)

    def close(self) -> None:
        self.startup.put("closed while it was starting")
        for inbox in self.inboxes:
            inbox.put(Stop())
        for thread in self.threads:
            thread.join(timeout=60)

    def _startup_reply(self) -> Ready | KVAllocated:
        reply = self.startup.get()
        if isinstance(reply, str):
            raise EngineDeadError(reply)
        return reply

    def _fail(self, message: str, error: BaseException) -> None:
        if not self.failed.is_set():  # the others only fail because this one did
            self.failed.set()
            logger.error("%s", message, exc_info=None if isinstance(error, LongspanError) else error)
            self.world.give_up()
            self.startup.put(message)
            self.on_failure(message)
