"""The scheduler on a virtual clock: the twin of `engine/engine_core.py`, for what plays engine without one.

    now, what = heappop(due);   for action in scheduler.handle(event(what), now): push(its end, action)

What is due at the same time is handled in the order in which it became known. Instances take actions first in, first
out, as workers do: a batch queued behind another begins when that one ends, and what the host prepares for it costs
nothing if it is done by then. So does every pipeline stage of an instance; the first is told free as much earlier as
the host takes for a batch, so that the next begins when this one leaves.
"""

# ruff: noqa: B027  # nobody has to look on

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from heapq import heappop, heappush

from longspan.core.actions import (
    Action,
    CancelBatch,
    FreeKV,
    InstanceDrained,
    MigrateKV,
    RefuseRequest,
    RunBatch,
    StopRequest,
)
from longspan.core.events import (
    BatchCompleted,
    Event,
    FirstStageFree,
    FleetEvent,
    InstanceLost,
    KVMigrated,
    RequestAborted,
    RequestArrived,
    TokenOutput,
)
from longspan.core.hierarchy import AnyScheduler
from longspan.simulator.cost import Seconds
from longspan.simulator.interference import Interference, Neighbours

Work = RunBatch | MigrateKV
Told = FreeKV | StopRequest | RefuseRequest | CancelBatch | InstanceDrained
Due = RequestArrived | RequestAborted | FirstStageFree | FleetEvent | Work
"""Work is due when it ends."""


@dataclass(frozen=True, slots=True)
class _UnderWay:
    """Work that has yet to end. It is kept here so that nothing else gets its id. ends_s: by stage."""

    work: Work
    instances: tuple[int, ...]
    ends_s: list[float]


class Driver(ABC):
    """Derived classes say what is sampled, and may look on.

    seconds: how long work takes with none ahead of it or beside it. interference: of instances beside each other.
    now: seconds.
    """

    def __init__(
        self, scheduler: AnyScheduler, seconds: Callable[[Work], Seconds], interference: Interference | None = None
    ) -> None:
        self.scheduler = scheduler
        self.now = 0.0
        self._seconds = seconds
        self._due: list[tuple[float, int, Due]] = []
        self._num_pushed = 0
        stages, instances = scheduler.config.pp, scheduler.config.num_instances
        self._free_at = [[0.0] * instances for _ in range(stages)]  # by stage and instance
        self._under_way: dict[int, _UnderWay] = {}
        self._void_batches: set[int] = set()  # which are still due to leave their first stage
        self._neighbours: Neighbours | None = None
        if interference is not None and stages == 1:  # a stage's share of it was not measured
            self._neighbours = Neighbours(interference, self._free_at[0])

    def push(self, at: float, what: Due) -> None:
        heappush(self._due, (at, self._num_pushed, what))
        self._num_pushed += 1

    def run_out(self) -> None:
        """Run until nothing is due any more."""
        while self._due:
            self.step()

    def step(self) -> None:
        """Handle what is due next."""
        self.now, _, what = heappop(self._due)
        if isinstance(what, FirstStageFree) and what.batch_id in self._void_batches:
            return
        if isinstance(what, Work):
            if id(what) not in self._under_way:  # it is void
                return
            if self._neighbours is not None and self._is_late(self._neighbours, what):
                return
            del self._under_way[id(what)]
        if isinstance(what, FleetEvent) and not self._changes(what):
            return
        if isinstance(what, RequestArrived):
            self._arrives(what)
        self.handle(self._event(what))

    def handle(self, event: Event) -> None:
        """Handle an event that happens now."""
        actions = self.scheduler.handle(event, self.now)
        if isinstance(event, InstanceLost) and not any([isinstance(action, CancelBatch) for action in actions]):
            self._renew({event.instance})
        for action in actions:
            if isinstance(action, RunBatch):
                self._submit(action, action.group)
            elif isinstance(action, MigrateKV):
                self._submit(action, (action.source, action.target))
            else:
                if isinstance(action, CancelBatch):
                    self._cancel(action, event)
                self._told(action)
        self._handled(event, actions)

    @abstractmethod
    def _sample(self, request_id: str) -> TokenOutput:
        """A batch has ended that emits a token of the request, perhaps one that has ended by now."""

    def _arrives(self, request: RequestArrived) -> None:
        """The scheduler is about to hear of it."""

    def _changes(self, event: FleetEvent) -> bool:
        """The fleet is about to change; returns whether it is worth telling."""
        return True

    def _submitted(self, work: Work, begin_s: float, end_s: float, seconds: Seconds) -> None:
        """It will begin and end then, unless it is slowed down."""

    def _told(self, action: Told) -> None:
        """What takes no time."""

    def _handled(self, event: Event, actions: list[Action]) -> None:
        """All that was decided is under way."""

    def _event(self, what: Due) -> Event:
        if isinstance(what, RunBatch):
            sampled = [self._sample(segment.request_id) for segment in what.segments if segment.emits]
            return BatchCompleted(what.batch_id, tuple(sampled))
        return KVMigrated(what.migration_id) if isinstance(what, MigrateKV) else what

    def _submit(self, work: Work, instances: tuple[int, ...]) -> None:
        """Put it behind all that its instances have."""
        seconds = self._seconds(work)
        begin_s, end_s = 0.0, self.now + seconds.host
        ends_s: list[float] = []
        for stage, stage_s in enumerate(seconds.stages):
            free_at = self._free_at[stage]
            for instance in instances:
                if free_at[instance] > end_s:
                    end_s = free_at[instance]
            if stage == 0:
                begin_s = end_s
            if self._neighbours is None:
                end_s += stage_s
            else:
                end_s = self._neighbours.begin(work, instances, begin_s, stage_s)
            if stage == 0 and len(self._free_at) > 1 and isinstance(work, RunBatch):
                self.push(max(begin_s, end_s - seconds.host), FirstStageFree(work.batch_id))
            for instance in instances:
                free_at[instance] = end_s
            ends_s.append(end_s)
        self._under_way[id(work)] = _UnderWay(work, instances, ends_s)
        self.push(end_s, work)
        self._submitted(work, begin_s, end_s, seconds)

    def _cancel(self, void: CancelBatch, event: Event) -> None:
        """Let void work never end; its instances are free when what is before it is done, or now."""
        touched = {event.instance} if isinstance(event, InstanceLost) else set[int]()
        for key, each in list(self._under_way.items()):
            action = each.work
            if _is_void(action, void):
                touched.update(each.instances)
                del self._under_way[key]
                if self._neighbours is not None:
                    self._neighbours.finish(action)
        self._void_batches.update(void.batch_ids)
        self._renew(touched)

    def _renew(self, instances: set[int]) -> None:
        """Find anew when these are free."""
        for stage, free_at in enumerate(self._free_at):
            for number in instances:
                ends_s = [each.ends_s[stage] for each in self._under_way.values() if number in each.instances]
                free_at[number] = max(ends_s, default=self.now)

    def _is_late(self, neighbours: Neighbours, work: Work) -> bool:
        """They have slowed it down since it was pushed: it is due later."""
        end_s = neighbours.end_s(work)
        if end_s > self.now:
            self.push(end_s, work)
            return True
        neighbours.finish(work)
        return False


def _is_void(work: Work, void: CancelBatch) -> bool:
    if isinstance(work, RunBatch):
        return work.batch_id in void.batch_ids
    return work.migration_id in void.migration_ids
