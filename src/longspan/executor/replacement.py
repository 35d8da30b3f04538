"""What becomes of an instance that is lost: its workers are ended, others are started, all link to them, it is back.

The steps are taken on the reader's thread, one after the other; starting processes is the launcher's.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace

from longspan.executor.base import LostInstance, NewInstance, News
from longspan.executor.instance_workers import InstanceWorkers
from longspan.executor.machine import on_machine
from longspan.executor.reader import Reader
from longspan.executor.worker_handle import WorkerHandle
from longspan.log_fields import fields
from longspan.worker.messages import AllocateKV, Command, encode

logger = logging.getLogger(__name__)

_SLOWEST = 10
"""Workers that come in place of others may take so many times what the first ones took to load,"""
_LEAST_LOAD_S = 120.0
"""and so many seconds at least: the machine is busy with what the others do."""


class Replacement:
    """Of the instances of one engine. on_news: hears what is lost, and what is there again.

    setup: what each worker is told first, its pool's size among it. load_s: how long the first start took.
    machine_s: so long a machine that is lost is expected back.
    """

    def __init__(
        self,
        instances: Sequence[InstanceWorkers],
        reader: Reader,
        on_news: Callable[[News], None],
        setup: Sequence[Command],
        load_s: float,
        pp_layers: tuple[int, ...],
        machine_s: float,
    ) -> None:
        self._instances = instances
        self._reader = reader
        self._on_news = on_news
        self._setup = setup
        self._most_load_s = max(_LEAST_LOAD_S, _SLOWEST * load_s)
        self._pp_layers = pp_layers
        self._machine_s = machine_s
        for instance in instances:
            instance.go("serving", time.monotonic())

    def lose(self, number: int, why: str, *, failed: bool = False) -> str | None:
        """End an instance, and have it come again. Returns None; or why all is over, since none is left to wait for.

        failed: see `LostInstance`.
        """
        instance, now = self._instances[number], time.monotonic()
        was_serving = instance.stage == "serving"
        instance.awaits_machine = not instance.machine.is_there
        delay_s = self._delay_s(instance, now)
        self._end(instance, why, delay_s)
        if all(other.stage == "missing" for other in self._instances):
            return f"no instance is left, and none is started again by itself any more; the last: {why}"
        logger.error(
            "instance %d is lost: %s. %s; %s", number, why, self._told_of_rest(), _told_of_start(instance, delay_s),
            extra=fields(instance=number),
        )  # fmt: skip
        if was_serving or delay_s is None:
            self._on_news(LostInstance(number, why, delay_s is not None, failed))
        return None

    def _delay_s(self, instance: InstanceWorkers, now: float) -> float | None:
        """In how many seconds it may come again; None: not by itself, or nobody knows when, since it waited already."""
        if instance.machine.is_there:
            return instance.restarts.delay_s(now)
        return None if instance.stage == "waiting" else 0.0

    def _end(self, instance: InstanceWorkers, why: str, delay_s: float | None) -> None:
        now = time.monotonic()
        instance.end(why)
        instance.come_again(now, delay_s)
        self._reader.watch([handle for other in self._instances for handle in other.handles])
        for other in self._instances:
            other.unlinked = {rank for rank in other.unlinked if rank not in self._ranks(instance)}
            self._try_to_join(other)
        for handle in (handle for other in self._instances for handle in other.handles):
            handle.vitals.reset(now)  # they may have waited for what was lost

    def end(self, number: int, why: str, *, again: bool) -> None:
        """End an instance that holds nothing any more; again: to have it come at once."""
        instance = self._instances[number]
        if instance.stage != "serving":
            return  # it is lost, and known to be
        instance.awaits_machine = instance.machine.is_leaving
        self._end(instance, why, 0.0 if again else None)
        logger.warning("instance %d is ended: %s", number, why, extra=fields(instance=number))
        self._on_news(LostInstance(number, why, returns=again))

    def restart(self, number: int) -> None:
        """Start the workers of an instance that is missing, or that waits for it; what failed before is forgiven."""
        self._restart(self._instances[number])

    def returned(self, node: int) -> None:
        """A machine is there again: start what went with it."""
        for instance in self._instances:
            if instance.machine.node == node and instance.awaits_machine:
                self._restart(instance)

    def _restart(self, instance: InstanceWorkers) -> None:
        if instance.stage in ("missing", "waiting"):
            instance.restarts.forgive()
            instance.awaits_machine = False
            instance.come_again(time.monotonic(), 0.0)

    def check(self) -> tuple[int, str] | None:
        """Start what is due, and hear what was started. Returns an instance that does not come, and why."""
        now = time.monotonic()
        for instance in self._instances:
            if instance.starting is not None:
                if instance.starting.done() and (why := self._take_started(instance, instance.starting)) is not None:
                    return instance.number, why
            elif instance.stage == "waiting" and not instance.machine.is_there:
                if (away_s := now - instance.stage_since) > self._machine_s:
                    return instance.number, f"{instance.machine.name} has been away for {away_s:.0f} s"
            elif instance.stage == "waiting" and instance.due <= now:
                if (why := self._start(instance)) is not None:
                    return instance.number, why
            elif instance.stage == "loading" and now - instance.stage_since > self._most_load_s:
                return instance.number, f"its workers have not loaded after {now - instance.stage_since:.0f} s"
        return None

    def loaded(self, instance: InstanceWorkers) -> None:
        """All workers of an instance that comes have loaded: give them what the first ones got."""
        if instance.is_loaded:
            for command in self._setup:
                _tell(instance.handles, command)

    def allocated(self, instance: InstanceWorkers) -> None:
        """And now they have made their pools: have the others link to them."""
        if not instance.is_allocated:
            return
        instance.go("linking", time.monotonic())
        peers = [other for other in self._instances if other is not instance and other.stage in ("linking", "serving")]
        handles = [handle for other in peers for handle in other.handles]
        instance.unlinked = {handle.spec.rank for handle in handles}
        _tell(handles, instance.link())
        self._try_to_join(instance)

    def linked(self, number: int, rank: int, error: str) -> str | None:
        """A worker of another instance exchanges with this one. Returns why it cannot, if that is so."""
        if error and self._instances[number].stage == "linking":
            return f"not all others can exchange with it: {error}"
        self._instances[number].unlinked.discard(rank)
        self._try_to_join(self._instances[number])
        return None

    def _start(self, instance: InstanceWorkers) -> str | None:
        """Returns why that cannot be."""
        instance.go("loading", time.monotonic())
        instance.num_starts += 1
        try:
            instance.place = instance.machine.make_place()
        except OSError as error:
            return f"its workers have no place to meet the others: {error}"
        fleet = len(self._instances)
        specs = [replace(spec, pp_layers=self._pp_layers, num_instances=fleet) for spec in instance.specs]
        beside = [other for other in self._instances if other.machine.host == instance.machine.host]
        there = [spec for other in beside for spec in other.specs]
        instance.starting = instance.machine.start(on_machine(specs, instance.machine, there), instance.place)
        instance.starting.add_done_callback(lambda _: self._reader.wake())
        return None

    def _take_started(self, instance: InstanceWorkers, starting: Future[list[WorkerHandle]]) -> str | None:
        """Hear those that have been started. Returns why there are none."""
        instance.starting = None
        if (error := starting.exception()) is not None:
            return f"its workers cannot be started: {error}"
        instance.handles = starting.result()
        self._reader.watch([handle for other in self._instances for handle in other.handles])
        return None

    def _try_to_join(self, instance: InstanceWorkers) -> None:
        if instance.stage != "linking" or instance.unlinked:
            return
        instance.leave_place()
        seconds = time.monotonic() - instance.stage_since
        instance.go("serving", time.monotonic())
        is_new = instance.num_starts == 1
        if is_new:
            instance.why = ""
        logger.warning(
            "instance %d serves%s; linking took the others %.1f s",
            instance.number, "" if is_new else " again", seconds, extra=fields(instance=instance.number),
        )  # fmt: skip
        (kv_tokens,) = [command.num_tokens for command in self._setup if isinstance(command, AllocateKV)]
        self._on_news(NewInstance(instance.number, kv_tokens))

    def _told_of_rest(self) -> str:
        serving = [str(instance.number) for instance in self._instances if instance.stage == "serving"]
        if len(serving) == 1:
            return f"instance {serving[0]} goes on"
        return f"instances {', '.join(serving)} go on" if serving else "no other serves, so requests wait"

    def _ranks(self, instance: InstanceWorkers) -> set[int]:
        return {spec.rank for spec in instance.specs}


def _told_of_start(instance: InstanceWorkers, delay_s: float | None) -> str:
    if not instance.machine.is_there:
        return f"it is started again when {instance.machine.name} is back"
    if delay_s is None:
        return "it was started again too often, and stays missing"
    return f"it is started again in {delay_s:g} s"


def _tell(handles: Sequence[WorkerHandle], command: Command) -> None:
    data = encode(command)
    for handle in handles:
        with suppress(OSError):  # it has ended, as the reader is about to find out
            handle.send(command, data)
