"""The instances: free slots, and what runs where."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Set
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Generic, TypeVar

from longspan.core.actions import MigrateKV, RunBatch
from longspan.core.books.request import Request
from longspan.core.internal_error import InternalError

WorkT = TypeVar("WorkT", RunBatch, MigrateKV)


@dataclass(frozen=True, slots=True, eq=False)
class Work(Generic[WorkT]):
    """A batch or a migration: occupies its instances from the moment it is issued until it completes.

    With several pipeline stages a batch occupies them until it is about to leave the first stage.
    """

    action: WorkT
    instances: tuple[int, ...]
    is_decode: bool = False
    """Every segment is one decode token, so its instances come back soon."""


@dataclass(slots=True, eq=False)
class Instance:
    """One elastic instance.

    used: slots taken, also by batches that have yet to fill them and by migrations on their way here.
    promised: free slots that the requests at home here may count on for their coming tokens.
    reserved: free slots set aside for requests' coming tokens by plan; unlike a promise, kept from all other requests.
    stages: of its pipeline; about as many batches may be in flight, see `most_in_flight`.
    running: the work that its devices have begun last; with several stages, what is in the first.
    later: batches that have left the first stage or are about to, oldest first.
    queued: the next decode iteration, behind the running one of the very same group.
    ready: requests with KV here that nothing touches, longest ready first.
    flowing: prefills with KV here whose next chunk may follow those that are in later stages.
    """

    id: int
    capacity: int
    stages: int = 1
    used: int = 0
    promised: int = 0
    reserved: int = 0
    running: Work[RunBatch] | Work[MigrateKV] | None = None
    later: list[Work[RunBatch]] = field(default_factory=list)
    queued: Work[RunBatch] | None = None
    ready: dict[str, Request] = field(default_factory=dict)
    flowing: dict[str, Request] = field(default_factory=dict)

    @property
    def free(self) -> int:
        return self.capacity - self.used

    @property
    def unreserved(self) -> int:
        """Free slots that any request may take."""
        return self.capacity - self.used - self.reserved

    @property
    def room(self) -> int:
        """Free slots that no request counts on; below zero when more is promised than there is."""
        return self.capacity - self.used - self.reserved - self.promised

    @property
    def is_idle(self) -> bool:
        """Whether it can begin something now: its first stage is free or about to be, and not too much is in flight."""
        return self.running is None and len(self.later) < self.most_in_flight

    @property
    def most_in_flight(self) -> int:
        """How many batches may be on their way through its stages.

        A batch for each stage keeps all stages busy, but for the time in which the host hears that one is through and
        prepares the next. With four stages or more one batch more hides that. With fewer it would cost too much: a
        decode waits for its turn behind all that is in flight, with two stages for half as long again.
        """
        return self.stages + (self.stages >= 4)

    @property
    def is_working(self) -> bool:
        """Whether something is on its way through it, in whatever stage."""
        return self.running is not None or bool(self.later)

    @property
    def is_decoding(self) -> bool:
        return self.running is not None and self.running.is_decode


class Cluster:
    """All instances, by number, and at hand those that a decision may be about, so that it need not look for them.

    total_capacity, largest_capacity: KV slots of all instances together, and of the one that has most.
    """

    def __init__(self, num_instances: int, capacity: int, stages: int = 1, first: int = 0) -> None:
        """Begin with all of them idle. first: the number of the first; it is above 0 where others have those before."""
        numbers = range(first, first + num_instances)
        self.instances = tuple(Instance(number, capacity, stages) for number in numbers)
        self._numbered = {instance.id: instance for instance in self.instances}
        self._idle = list(self.instances)
        self._idle_numbers = set(numbers)
        self._decoding: list[Instance] = []
        self._resting: set[int] = set()
        self._engaged: set[int] = set()
        self.total_capacity = sum(instance.capacity for instance in self.instances)
        self.largest_capacity = max(instance.capacity for instance in self.instances)

    def __getitem__(self, instance: int) -> Instance:
        return self._numbered[instance]

    def __contains__(self, instance: int) -> bool:
        return instance in self._numbered

    def __len__(self) -> int:
        return len(self.instances)

    def idle(self) -> list[Instance]:
        """Return the idle instances, by number, as all of these lists are."""
        return self._idle.copy()

    @property
    def idle_numbers(self) -> Set[int]:
        """The numbers of those that `idle` lists."""
        return self._idle_numbers

    def resting(self) -> list[Instance]:
        """Return the idle instances that have requests which are ready or flow."""
        return [self._numbered[number] for number in sorted(self._resting)] if self._resting else []

    def decoding(self) -> list[Instance]:
        """Return those that decode: busy, but back at their iteration's end, soon."""
        return self._decoding.copy()

    @property
    def engaged(self) -> Set[int]:
        """Numbers of the rest: they run a prefill or a migration, or later stages are full; that may take long."""
        return self._engaged

    def take(self, instance: int, tokens: int) -> None:
        taker = self._numbered[instance]
        taker.used += tokens
        if taker.used > taker.capacity:
            raise InternalError(f"instance {instance} has no room for {tokens} tokens more")

    def give_back(self, instance: int, tokens: int) -> None:
        self._numbered[instance].used -= tokens
        if self._numbered[instance].used < 0:
            raise InternalError(f"instance {instance} frees more than it holds")

    def list_ready(self, request: Request, holders: Iterable[int]) -> None:
        for number in holders:
            instance = self._numbered[number]
            instance.ready[request.id] = request
            if number in self._idle_numbers:
                self._resting.add(number)

    def unlist_ready(self, request: Request, holders: Iterable[int]) -> None:
        for number in holders:
            instance = self._numbered[number]
            instance.ready.pop(request.id, None)
            if not instance.ready and not instance.flowing:
                self._resting.discard(number)

    def list_flowing(self, request: Request, holders: Iterable[int]) -> None:
        for number in holders:
            instance = self._numbered[number]
            instance.flowing[request.id] = request
            if number in self._idle_numbers:
                self._resting.add(number)

    def unlist_flowing(self, request: Request, holders: Iterable[int]) -> None:
        for number in holders:
            instance = self._numbered[number]
            del instance.flowing[request.id]
            if not instance.ready and not instance.flowing:
                self._resting.discard(number)

    def start(self, work: Work[RunBatch] | Work[MigrateKV]) -> None:
        for number in work.instances:
            instance = self._numbered[number]
            if not instance.is_idle:
                raise InternalError(f"instance {number} is busy")
            instance.running = work
            del self._idle[bisect_left(self._idle, number, key=_NUMBER)]
            self._idle_numbers.remove(number)
            self._resting.discard(number)
            if work.is_decode:
                insort(self._decoding, instance, key=_NUMBER)
            else:
                self._engaged.add(number)

    def queue(self, work: Work[RunBatch]) -> None:
        """Put a batch behind the running one of the very same group."""
        ahead = self._numbered[work.instances[0]].running
        if ahead is None or ahead.instances != work.instances:
            raise InternalError(f"no batch of group {work.instances} runs that another could queue behind")
        for number in work.instances:
            if self._numbered[number].queued is not None:
                raise InternalError(f"instance {number} has a queued batch already")
            self._numbered[number].queued = work

    def pass_on(self, work: Work[RunBatch]) -> None:
        """Note that a running batch leaves the first stage."""
        for number in work.instances:
            instance = self._numbered[number]
            if instance.running is not work:
                raise InternalError(f"{work.action} leaves the first stage of instance {number}, but is not there")
            instance.running = None
            instance.later.append(work)
            self._leave(instance, work)

    def finish(self, work: Work[RunBatch] | Work[MigrateKV]) -> Work[RunBatch] | None:
        """Complete the work; returns the batch behind it, which runs now."""
        if work in self._numbered[work.instances[0]].later:
            for number in work.instances:
                instance = self._numbered[number]
                was_idle = instance.is_idle
                instance.later = [other for other in instance.later if other is not work]
                if instance.is_idle and not was_idle:
                    self._engaged.remove(number)
                    self._rest(instance)
            return None
        promoted = self._numbered[work.instances[0]].queued
        for number in work.instances:
            instance = self._numbered[number]
            if instance.running is not work:
                raise InternalError(f"{work.action} completed, but does not run on instance {number}")
            instance.running, instance.queued = promoted, None
            if promoted is None:
                self._leave(instance, work)
        return promoted

    def _leave(self, instance: Instance, work: Work[RunBatch] | Work[MigrateKV]) -> None:
        """Nothing is in the instance's first stage any more, after `work`."""
        if work.is_decode:
            del self._decoding[bisect_left(self._decoding, instance.id, key=_NUMBER)]
        else:
            self._engaged.remove(instance.id)
        if instance.is_idle:
            self._rest(instance)
        else:
            self._engaged.add(instance.id)

    def _rest(self, instance: Instance) -> None:
        insort(self._idle, instance, key=_NUMBER)
        self._idle_numbers.add(instance.id)
        if instance.ready or instance.flowing:
            self._resting.add(instance.id)


_NUMBER = attrgetter("id")
