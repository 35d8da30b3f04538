"""Requests played to a scheduler on a virtual clock, with durations that the caller makes up.

The smallest driver there is: for tests of policies, and examples small enough to follow by hand. What hardware would do
is for the simulator to say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from heapq import heappop, heappush

from longspan.core.actions import Action, MigrateKV, RunBatch
from longspan.core.events import BatchCompleted, Event, FirstStageFree, KVMigrated, RequestArrived, TokenOutput
from longspan.core.scheduler import Scheduler

Work = RunBatch | MigrateKV


@dataclass(slots=True)
class Played:
    """What a request's client sees, in seconds. Not `ended` at the end of it all: refused, or left waiting."""

    arrived: float
    num_output_tokens: int
    token_times: list[float] = field(default_factory=list)

    @property
    def ended(self) -> bool:
        return len(self.token_times) == self.num_output_tokens

    @property
    def ttft_s(self) -> float:
        return self.token_times[0] - self.arrived


def play(
    scheduler: Scheduler,
    arrivals: Iterable[tuple[float, RequestArrived]],
    seconds: Callable[[Work], float],
    on_step: Callable[[float, Event, list[Action]], None] = lambda now, event, actions: None,
) -> dict[str, Played]:
    """Until nothing runs and nobody is to come; every request generates as many tokens as it may.

    arrivals: (time, request), in any order. seconds: how long a batch or migration takes; pipeline stages share that of
        a batch evenly. on_step: called after each event is handled, with what was decided.
    """
    heap: list[tuple[float, int, RequestArrived | FirstStageFree | Work]] = []
    stages = scheduler.config.pp
    free_at = [[0.0] * stages for _ in range(scheduler.config.num_instances)]
    played: dict[str, Played] = {}
    count = 0

    def push(at: float, what: RequestArrived | FirstStageFree | Work) -> None:
        nonlocal count
        count += 1
        heappush(heap, (at, count, what))

    for at, arrival in arrivals:
        push(at, arrival)
    while heap:
        now, _, what = heappop(heap)
        if isinstance(what, RequestArrived):
            played[what.request_id] = Played(now, what.max_tokens)
        event = _event(what, played, now)
        actions = scheduler.handle(event, now)
        for action in actions:
            if isinstance(action, RunBatch | MigrateKV):
                instances = action.group if isinstance(action, RunBatch) else (action.source, action.target)
                end, stage_s = now, seconds(action) / stages
                for stage in range(stages):
                    end = max(end, *(free_at[number][stage] for number in instances)) + stage_s
                    for number in instances:
                        free_at[number][stage] = end
                    if stage == 0 and stages > 1 and isinstance(action, RunBatch):
                        push(end, FirstStageFree(action.batch_id))
                push(end, action)
        on_step(now, event, actions)
    return played


def _event(what: RequestArrived | FirstStageFree | Work, played: dict[str, Played], now: float) -> Event:
    if isinstance(what, RequestArrived | FirstStageFree):
        return what
    if isinstance(what, MigrateKV):
        return KVMigrated(what.migration_id)
    outputs = []
    for segment in what.segments:
        request = played[segment.request_id]
        if segment.emits and not request.ended:
            request.token_times.append(now)
            outputs.append(TokenOutput(segment.request_id, "length" if request.ended else None))
        elif segment.emits:
            outputs.append(TokenOutput(segment.request_id))
    return BatchCompleted(what.batch_id, tuple(outputs))
