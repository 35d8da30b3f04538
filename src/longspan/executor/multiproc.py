"""One process for each device, of this machine and of others.

A worker that dies is noticed at once, by its process handle; one that hangs, by its beats (`vitals`). Either costs its
own instance: what is left of that is killed, and its workers are started again, while the others go on. Where they
cannot go on without it, as over gloo or NCCL, or while the engine starts, every worker is ended.
"""

from __future__ import annotations

import atexit
import logging
import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from itertools import groupby

from longspan.errors import ConfigError, EngineDeadError
from longspan.executor.base import DeviceInfo, InstanceReport, LeavingInstance, News
from longspan.executor.instance_workers import InstanceWorkers
from longspan.executor.launcher import Launcher
from longspan.executor.machine import Machine, Place, on_machine
from longspan.executor.nodes.gathering import Nodes
from longspan.executor.reader import Reader
from longspan.executor.replacement import Replacement
from longspan.executor.restarts import Restarts
from longspan.executor.worker_handle import ProcessHandle, WorkerHandle
from longspan.executor.workers_loading import WorkersLoading
from longspan.log_fields import fields
from longspan.phases import OnPhase, ignore
from longspan.worker.messages import (
    AllocateKV,
    BatchDone,
    Beat,
    Command,
    Failed,
    FirstStageDone,
    KVAllocated,
    Linked,
    Loading,
    LoadVocabulary,
    Log,
    MigrationDone,
    Ready,
    Reply,
    Stop,
    WorkLeft,
    encode,
)
from longspan.worker.spec import WorkerSpec
from longspan.worker_usage import WorkerUsage

logger = logging.getLogger(__name__)

GRACE_S = 5.0  # for workers to end by themselves
_ALIKE = {"dtype": "--dtype", "quantization": "--quantization", "kernels": "LONGSPAN_CPU_ISA"}
"""What changes tokens, so that it has to be the same for all workers; and what sets it."""
MOST_RESTARTS, RESTART_WINDOW_S = 5, 600.0


class MultiprocExecutor:
    """`Executor` over processes. max_restarts, restart_window_s: see `Restarts`. nodes: the other machines."""

    def __init__(
        self, specs: list[WorkerSpec], worker_timeout_s: float, max_restarts: int = MOST_RESTARTS,
        restart_window_s: float = RESTART_WINDOW_S, nodes: Nodes | None = None,
    ) -> None:  # fmt: skip
        self.specs = specs
        self.nodes = nodes
        self.machine_s = restart_window_s
        self.launcher = Launcher(worker_timeout_s) if nodes is None else Launcher(
            worker_timeout_s, address=nodes.address, token=nodes.token
        )  # fmt: skip
        self.machines: list[Machine] = [self.launcher, *(nodes.machines if nodes is not None else ())]
        self.instances = [
            InstanceWorkers(list(group), Restarts(max_restarts, restart_window_s), self.machines[node])
            for number, group in groupby(specs, key=lambda spec: spec.instance)
            for node in [0 if nodes is None else nodes.machine_of(number, specs[0].num_instances)]
        ]
        self.started: list[Ready] = []
        self.startup = threading.Condition()
        self.failure: str | None = None
        self.closing = False
        self.told: set[tuple[str, str]] = set()
        self.places: list[Place] = []
        self.unlinked = 0
        self.reader = Reader(self._take, self._on_end, self._check)
        self.replacement: Replacement | None = None  # once all run
        self.wishes: queue.SimpleQueue[Callable[[Replacement], None]] = queue.SimpleQueue()

    @property
    def handles(self) -> list[ProcessHandle]:
        """Of all workers that have been started on this machine, in rank order at first."""
        return self.launcher.handles

    def start(
        self, on_reply: Callable[[News], None], on_failure: Callable[[str], None], on_phase: OnPhase = ignore
    ) -> DeviceInfo:
        self.on_reply, self.on_failure = on_reply, on_failure
        self.loading = WorkersLoading(len(self.specs), on_phase)
        atexit.register(self._abandon)  # a program that ends without `close` would wait for them
        if self.nodes is not None:
            self.nodes.open(self.reader, self._on_leaving_machine)
            self.nodes.wait(on_phase, lambda: self.closing)
        with self.startup:
            if not self.closing:  # else another thread has ended the reader
                self.reader.begin([])
        self._wait_for(lambda: True)
        self.load_began = time.monotonic()
        handles = self._start_all()
        for instance in self.instances:
            instance.handles = [handle for handle in handles if handle.spec.instance == instance.number]
        self.reader.watch(handles)
        self.reader.wake()
        self._wait_for(lambda: len(self.started) == len(self.specs))
        self._check_alike()
        if self.nodes is not None:
            self._link_machines()
        for place in self.places:
            place.close()  # they have met
        self.load_s = time.monotonic() - self.load_began
        return DeviceInfo.of(self.started)

    def _start_all(self) -> list[WorkerHandle]:
        """Have all machines start their workers; returns these in rank order. Raises EngineDeadError."""
        starting = []
        for machine in self.machines:
            there = [instance for instance in self.instances if instance.machine.host == machine.host]
            all_there = [spec for instance in there for spec in instance.specs]
            specs = [spec for instance in there if instance.machine is machine for spec in instance.specs]
            try:
                self.places.append(machine.make_place())
                starting.append(machine.start(on_machine(specs, machine, all_there), self.places[-1]))
            except OSError as error:
                raise EngineDeadError(f"workers have no place to meet: {error}") from error
        try:
            return [handle for started in starting for handle in started.result()]
        except OSError as error:
            raise EngineDeadError(f"workers cannot be started: {error}") from error

    def _check_alike(self) -> None:
        """Raises ConfigError where machines would compute differently."""
        for name, setting in _ALIKE.items():
            found = sorted({str(getattr(ready, name)) for ready in self.started})
            if len(found) > 1:
                raise ConfigError(
                    f"machines differ in what they choose for {name}: {', '.join(found)}. Set {setting} on all of them "
                    "to what each can do"
                )

    def _link_machines(self) -> None:
        """Have workers of each two machines exchange."""
        for instance in self.instances:
            earlier = [
                handle for other in self.instances[: instance.number]
                if other.machine is not instance.machine for handle in other.handles
            ]  # fmt: skip
            with self.startup:
                self.unlinked += len(earlier)
            link = encode(instance.link())
            for handle in earlier:
                with suppress(OSError):  # it has ended, as the reader is about to find out, with the reason
                    handle.send(instance.link(), link)
        self._wait_for(lambda: self.unlinked == 0)

    def allocate_kv(self, num_tokens: int) -> None:
        for instance in self.instances:
            self.submit(instance.number, AllocateKV(num_tokens))
        self._wait_for(lambda: all(instance.is_allocated for instance in self.instances))
        self.setup: list[Command] = [AllocateKV(num_tokens)]

    def survive_losses(self) -> bool:
        if all(ready.links_anew for ready in self.started):
            self.replacement = Replacement(
                self.instances, self.reader, self.on_reply, self.setup, self.load_s, self.started[0].pp_layers,
                self.machine_s,
            )  # fmt: skip
        return self.replacement is not None

    def submit(self, instance: int, command: Command) -> None:
        if isinstance(command, LoadVocabulary) and command not in self.setup:
            self.setup.append(command)
        workers = self.instances[instance]
        if workers.admitted:
            data = encode(command)
            for handle in workers.handles:
                with suppress(OSError):  # it has ended, as the reader is about to find out, with the reason
                    handle.send(command, data)

    def admit(self, instance: int) -> None:
        workers = self.instances[instance]
        workers.admitted = workers.stage == "serving"  # else it is lost again, as the engine is about to hear

    def end(self, instance: int, why: str, *, again: bool) -> None:
        self._wish(lambda replacement: replacement.end(instance, why, again=again))

    def add(self) -> int:
        number, first = len(self.instances), self.instances[0]
        specs = [replace(spec, instance=number) for spec in first.specs]
        machine = self._machine_for_another()
        self.instances.append(InstanceWorkers(specs, first.restarts.of_another(), machine))
        self.instances[number].announce()
        self.restart(number)
        return number

    def _machine_for_another(self) -> Machine:
        if self.nodes is not None and (made := self.nodes.machine_for_another()) is not None:
            self.machines.append(made)
            return made
        placed = [instance.machine.node for instance in self.instances]
        there = [machine for machine in self.machines if machine.is_there and not machine.is_leaving]
        return min(there, key=lambda machine: placed.count(machine.node))

    def restart(self, instance: int) -> None:
        self._wish(lambda replacement: replacement.restart(instance))

    def _wish(self, wish: Callable[[Replacement], None]) -> None:
        """Have the reader's thread see to it."""
        assert self.replacement is not None, "who asks looks whether losses can be survived"
        self.wishes.put(wish)
        self.reader.wake()

    def reports(self) -> list[InstanceReport]:
        return [instance.report() for instance in self.instances]

    def usage(self) -> tuple[WorkerUsage, ...]:
        known = [handle for instance in self.instances for handle in instance.handles]
        return tuple([handle.usage for handle in known if handle.usage is not None])

    def close(self) -> None:
        with self.startup:
            if self.closing:
                return
            self.closing = True
            self.startup.notify_all()
        self.launcher.close()  # it may be starting one
        self.reader.end(GRACE_S)
        if self.nodes is not None:
            self.nodes.close() if self.failure is not None else self.nodes.leave(GRACE_S)
        stop = encode(Stop())
        for handle in self.handles:
            with suppress(OSError):  # it has ended already
                handle.send(Stop(), stop)
        deadline = time.monotonic() + GRACE_S
        for handle in self.handles:
            handle.process.join(max(0.0, deadline - time.monotonic()))
        self._kill()
        for handle in self.handles:
            handle.process.join(GRACE_S)
        atexit.unregister(self._abandon)
        self._leave_places()
        self.launcher.end()

    def _wait_for(self, condition: Callable[[], bool]) -> None:
        with self.startup:
            self.startup.wait_for(lambda: condition() or self.failure is not None or self.closing)
        if self.failure is not None or self.closing:
            self.close()
            atexit.unregister(self._abandon)  # if a `close` from another thread came before it was registered
            raise EngineDeadError(self.failure or "closed while it was starting")

    # -- on the reader's thread -----------------------------------------------------------------------------------

    def _take(self, handle: WorkerHandle, reply: Reply) -> None:
        match reply:
            case Beat(progress, usage):
                handle.vitals.beat(progress, time.monotonic())
                handle.usage = usage
            case Log():
                self._log(handle, reply)
            case Failed(message):
                self._lose(handle, message, failed=True)
            case FirstStageDone() | BatchDone() | MigrationDone():
                handle.answered()
                self.on_reply(reply)
            case WorkLeft():
                handle.answered()
            case _:
                self._take_step(handle, reply)

    def _take_step(self, handle: WorkerHandle, reply: Reply) -> None:
        """A step on the way to a worker that serves."""
        instance, replacement = self.instances[handle.spec.instance], self.replacement
        match reply:
            case Loading() if replacement is None:
                self.loading.take(handle.spec.rank, reply)
            case Linked(number, error) if replacement is not None:
                if (why := replacement.linked(number, handle.spec.rank, error)) is not None:
                    self._lose_instance(number, why)
            case Linked(_, error):
                if error:
                    self._fail(error)
                with self.startup:
                    self.unlinked -= 1
                    self.startup.notify_all()
            case Ready():
                instance.ready[handle.spec.rank] = reply
                if replacement is not None:
                    replacement.loaded(instance)
                    return
                with self.startup:
                    self.started.append(reply)
                    self.startup.notify_all()
            case KVAllocated():
                handle.vitals.reset(time.monotonic())  # it took any time to load
                with self.startup:
                    instance.num_allocated += 1
                    self.startup.notify_all()
                if replacement is not None:
                    replacement.allocated(instance)

    def _on_end(self, handle: WorkerHandle) -> None:
        self._lose(handle, handle.end_message(), failed=handle.has_crashed)

    def _check(self, late_s: float) -> None:
        if self.nodes is not None:
            self._check_machines(self.nodes, late_s)
        if self.replacement is None:
            if not all(instance.is_allocated for instance in self.instances):
                return  # loading a model may take any time
        else:
            while not self.wishes.empty():
                self.wishes.get()(self.replacement)
            if (failed := self.replacement.check()) is not None:
                self._lose_instance(*failed)
        now = time.monotonic()
        for instance in self.instances:
            if not instance.is_allocated:
                continue
            for handle in instance.handles:
                handle.vitals.excuse(late_s)
                if (how := handle.vitals.verdict(now, has_work=handle.has_work)) is not None:
                    self._lose(handle, f"{handle.spec.name} {how}")
                    return  # those that waited for it have time from now on

    def _check_machines(self, nodes: Nodes, late_s: float) -> None:
        lost, back = nodes.check(time.monotonic(), late_s)
        for node, why in lost:
            logger.warning("%s", why)
            for instance in self.instances:
                if instance.machine.node == node and instance.stage not in ("waiting", "missing"):
                    self._lose_instance(instance.number, why)
        for node in back:
            if self.replacement is not None:
                self.replacement.returned(node)

    def _on_leaving_machine(self, node: int) -> None:
        """On any thread: what is there is to be emptied."""
        logger.info("%s has been told to stop: its instances are emptied", self.machines[node].name)
        if self.replacement is not None:
            for instance in self.instances:
                if instance.machine.node == node and instance.stage == "serving":
                    self.on_reply(LeavingInstance(instance.number))

    def _lose(self, handle: WorkerHandle, message: str, *, failed: bool = False) -> None:
        self._lose_instance(handle.spec.instance, message, failed=failed)

    def _lose_instance(self, number: int, message: str, *, failed: bool = False) -> None:
        if self.closing:
            return
        over = message if self.replacement is None else self.replacement.lose(number, message, failed=failed)
        if over is not None:
            self._fail(over)

    def _log(self, handle: WorkerHandle, line: Log) -> None:
        """In this program's own log, and format. What all workers tell while they load, the first one tells."""
        target = logging.getLogger(line.logger)
        if not target.isEnabledFor(line.level):
            return
        if len(self.started) < len(self.specs) and line.level <= logging.INFO:
            if (line.logger, line.text) in self.told:
                return
            self.told.add((line.logger, line.text))
        spec = handle.spec
        target.log(
            line.level, "%s: %s", spec.name, line.text, extra=fields(worker=spec.rank, instance=spec.instance)
        )  # fmt: skip

    def _fail(self, message: str) -> None:
        if self.failure is not None or self.closing:
            return
        logger.error("%s", message)
        with self.startup:
            self.failure = message
            self.startup.notify_all()
        self.reader.end()
        self._kill()
        if self.nodes is not None:
            self.nodes.close()
        self.on_failure(message)

    # -- the end --------------------------------------------------------------------------------------------------

    def _abandon(self) -> None:
        self.closing = True
        self._kill()
        if self.nodes is not None:
            self.nodes.close()
        self._leave_places()

    def _leave_places(self) -> None:
        for place in self.places:
            place.close()
        for instance in self.instances:
            instance.leave_place()

    def _kill(self) -> None:
        for handle in self.handles:
            if handle.process.is_alive():
                handle.process.kill()
