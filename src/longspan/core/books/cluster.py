"""The instances: free slots, and what runs where."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Collection, Set
from operator import attrgetter

from longspan.core.actions import MigrateKV, RunBatch
from longspan.core.books.fleet import Fleet, Lost
from longspan.core.books.instance import Instance, Work
from longspan.core.books.resting import RestingRequests
from longspan.core.internal_error import InternalError

__all__ = ["Cluster", "Instance", "Work"]


class Cluster(RestingRequests):
    """The instances that serve, by number, and at hand those that a decision may be about, so that it need not look
    for them.

    numbers: of all that have ever served. total_capacity, largest_capacity: KV slots of all that serve, and of the one
    that has most. fleet: what else is known of the fleet. held: see `hold`.
    """

    def __init__(self, num_instances: int, capacity: int, stages: int = 1, first: int = 0) -> None:
        """Begin with all of them idle. first: the number of the first; it is above 0 where others have those before."""
        numbers = range(first, first + num_instances)
        self.numbers = list(numbers)
        self.instances = tuple([Instance(number, capacity, stages) for number in numbers])
        self._stages = stages
        super().__init__(self.instances)
        self._idle = list(self.instances)
        self._decoding: list[Instance] = []
        self._engaged: set[int] = set()
        self.held: list[Instance] = []
        self.fleet = Fleet()
        self._recount()

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

    def use_cached(self, instance: int, tokens: int) -> None:
        """Note that some request refers to cached tokens again."""
        self._numbered[instance].cached -= tokens
        self.take(instance, tokens)

    def keep_cached(self, instance: int, tokens: int) -> None:
        """Note that no request refers to these tokens any more, and that they stay for the time being."""
        self.give_back(instance, tokens)
        self._numbered[instance].cached += tokens

    def evict(self, instance: int, tokens: int) -> None:
        self._numbered[instance].cached -= tokens

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

    # a fleet that changes

    def hold(self, number: int) -> None:
        """Let an idle instance count as busy until `release`."""
        instance = self._numbered[number]
        instance.is_held = True
        self.held.append(instance)
        self._file(instance)

    def release(self) -> None:
        """Hold no instance any more."""
        while self.held:
            instance = self.held.pop()
            instance.is_held = False
            self._file(instance)

    def drop(self, void: Collection[Work[RunBatch] | Work[MigrateKV]]) -> None:
        """Take work out that is void, wherever it is."""
        for number in sorted({number for work in void for number in work.instances}):
            instance = self._numbered[number]
            instance.later = [work for work in instance.later if work not in void]
            if instance.running in void:
                instance.running = None
            if instance.queued in void:
                instance.queued = None
            self._file(instance)

    def join(self, number: int, capacity: int) -> None:
        """Take in an instance that serves from now on, and is empty."""
        if number in self._numbered:
            raise InternalError(f"instance {number} joins, but serves already")
        if number not in self.numbers:
            insort(self.numbers, number)
        instance = self._numbered[number] = Instance(number, capacity, self._stages)
        self.instances = tuple(sorted([*self.instances, instance], key=_NUMBER))
        self.fleet.lost.pop(number, None)
        self._file(instance)
        self._recount()

    def lose(self, number: int, returns: bool) -> None:
        """Let go of an instance, of which nothing is left in the books. returns: whether it is expected back."""
        instance = self._numbered[number]
        self._unfile(instance)
        if instance.is_leaving:
            instance.promised -= instance.capacity
        if instance.used or instance.cached or instance.promised or instance.reserved or instance.in_flight:
            raise InternalError(f"instance {number} is lost, but the books still have {instance}")
        del self._numbered[number]
        self.held = [held for held in self.held if held is not instance]
        self.instances = tuple([other for other in self.instances if other is not instance])
        self.fleet.lost[number] = Lost(instance.capacity, returns, instance.is_leaving)
        self.expect(number, returns)

    def expect(self, number: int, returns: bool) -> None:
        """Note of an instance that is lost whether it is expected back. One that was forgotten stays so."""
        lost = self.fleet.lost.get(number)
        if lost is None and number in self.numbers and not returns:
            return
        if lost is None:
            raise InternalError(f"instance {number} is lost, but there is none")
        self.fleet.lost[number] = Lost(lost.capacity, returns, lost.has_left)
        self._recount()

    def forget_gone(self) -> None:
        """Count those no more that have left for good."""
        for number in self.fleet.gone:
            del self.fleet.lost[number]
        self._recount()

    def leave(self, number: int) -> None:
        """Let nothing begin on an instance any more: whatever room it has is promised to nobody in particular."""
        instance = self._numbered.get(number)
        if instance is None or instance.is_leaving:
            raise InternalError(f"instance {number} cannot leave: it {'leaves' if instance else 'does not serve'}")
        instance.is_leaving = True
        instance.promised += instance.capacity
        self._recount()

    def _recount(self) -> None:
        self.total_capacity = sum([instance.capacity for instance in self.instances])
        self.largest_capacity = max([instance.capacity for instance in self.instances], default=0)
        self.fleet.recount(self.instances)

    def _file(self, instance: Instance) -> None:
        """List the instance anew where it belongs."""
        self._unfile(instance)
        if instance.is_idle:
            self._rest(instance)
        elif instance.is_decoding:
            insort(self._decoding, instance, key=_NUMBER)
        else:
            self._engaged.add(instance.id)

    def _unfile(self, instance: Instance) -> None:
        self._idle = [other for other in self._idle if other is not instance]
        self._idle_numbers.discard(instance.id)
        self._decoding = [other for other in self._decoding if other is not instance]
        self._engaged.discard(instance.id)
        self._resting.discard(instance.id)

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
