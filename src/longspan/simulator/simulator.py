"""The unchanged scheduler on a virtual clock: the simulator's driver, the twin of `engine/engine_core.py`.

    now, what = heappop(heap);   for action in scheduler.handle(event(what), now): push(its end, action)

Instances take actions first in, first out, as workers do: a batch queued behind another begins when that one ends,
and what the host prepares for it costs nothing if it is done by then. So does every pipeline stage of an instance.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

from longspan.config import SchedulerConfig
from longspan.core.actions import Action, FreeKV, MigrateKV, RefuseRequest, RunBatch
from longspan.core.costs.cost_model import FittedCostModel
from longspan.core.events import BatchCompleted, Event, FirstStageFree, KVMigrated, RequestArrived, TokenOutput
from longspan.core.internal_error import InternalError
from longspan.core.policies.base import Policy
from longspan.core.scheduler import Scheduler
from longspan.errors import ConfigError
from longspan.metrics.event_log import EventLogWriter
from longspan.metrics.request_metrics import RequestRecord
from longspan.simulator.cost import IterationCost
from longspan.simulator.interference import Neighbours
from longspan.simulator.limits import OutputLimit, max_tokens
from longspan.simulator.usage import Usage
from longspan.workload.traces import TraceRequest

_REPORT_EVERY = 1024  # events

_Coming = RequestArrived | FirstStageFree | RunBatch | MigrateKV


@dataclass(frozen=True, slots=True)
class SimulatedRequest:
    """began_s: when the first batch that it is in began; None if it was refused."""

    record: RequestRecord
    began_s: float | None = None
    num_preemptions: int = 0


@dataclass(frozen=True, slots=True)
class Simulation:
    """requests: finished ones in the order in which they ended. ended_s: of the last event. num_batches: iterations."""

    requests: list[SimulatedRequest]
    usage: Usage
    ended_s: float
    num_events: int
    num_batches: int

    def records(self) -> list[RequestRecord]:
        return [request.record for request in self.requests]


@dataclass(slots=True)
class _Life:
    """A request that goes on, and what only the client knows: num_output_tokens, at which it will end.

    token: what the scheduler hears of each but the last.
    """

    token: TokenOutput
    num_prompt_tokens: int
    num_output_tokens: int
    arrived_s: float
    token_times_s: array[float]
    began_s: float | None = None
    num_preemptions: int = 0


class Simulator:
    """One run. Requests come in order of arrival; the same arguments give the same result to the bit.

    cost_model: what the policy predicts with; not the truth, which is `cost`.
    max_model_len: longer requests are refused before the scheduler sees them, as the engine does.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        cost: IterationCost,
        *,
        policy: Policy | None = None,
        cost_model: FittedCostModel | None = None,
        max_model_len: int | None = None,
        limit: OutputLimit = "longest",
        event_log: EventLogWriter | None = None,
        on_progress: Callable[[int, float], None] = lambda num_ended, now: None,
    ) -> None:
        if config.num_instances != cost.fleet.instances:
            raise ConfigError(f"the scheduler has {config.num_instances} instances, the fleet {cost.fleet.instances}")
        if config.pp != cost.fleet.pp:
            raise ConfigError(f"the scheduler has {config.pp} pipeline stages, the fleet {cost.fleet.pp}")
        self.config = config
        self.cost = cost
        self.scheduler = Scheduler(config, policy, cost_model)
        self.max_model_len = min(config.total_kv_tokens, max_model_len or config.total_kv_tokens)
        self.limit = limit
        self.event_log = event_log
        self.on_progress = on_progress
        self.usage = Usage(config.num_instances)
        self._heap: list[tuple[float, int, _Coming]] = []
        self._sequence = 0
        self._free_at = [[0.0] * config.num_instances for _ in range(config.pp)]  # by stage and instance
        interference = cost.fleet.machine.interference
        self._neighbours: Neighbours | None = None
        if interference is not None and config.pp == 1:  # a stage's share of it was not measured
            self._neighbours = Neighbours(interference, self._free_at[0])
        self._lives: dict[str, _Life] = {}
        self._ended: list[SimulatedRequest] = []
        self._num_batches = 0

    def run(self, requests: Sequence[TraceRequest]) -> Simulation:
        """Until every request has ended. Raises InternalError: the policy leaves some waiting for ever."""
        arrivals = self._arrivals(requests)
        self._push_next(arrivals)
        now, num_events = 0.0, 0
        while self._heap:
            now, _, what = heappop(self._heap)
            if self._neighbours is not None and isinstance(what, RunBatch | MigrateKV):
                if (end_s := self._neighbours.end_s(what)) > now:  # it was slowed down
                    self._push(end_s, what)
                    continue
                self._neighbours.finish(what)
            event = self._event(what, now)
            if isinstance(what, RequestArrived):
                self._push_next(arrivals)
            actions = self.scheduler.handle(event, now)
            if self.event_log is not None:
                self.event_log.write(now, event, actions, self.scheduler.decisions)
            for action in actions:
                self._submit(action, now)
            if now >= self.usage.next_sample_s:
                self.usage.kv(now, self.scheduler.stats().kv_tokens_used)
            num_events += 1
            if num_events % _REPORT_EVERY == 0:
                self.on_progress(len(self._ended), now)
        if self._lives:
            raise InternalError(
                f"the policy {self.scheduler.policy.name!r} rests, but {len(self._lives)} requests are alive"
            )
        self.scheduler.check_invariants()
        self.on_progress(len(self._ended), now)
        return Simulation(self._ended, self.usage, now, num_events, self._num_batches)

    # events

    def _arrivals(self, requests: Sequence[TraceRequest]) -> Iterator[tuple[float, RequestArrived]]:
        """One by one, so that only requests that have arrived take memory here."""
        longest = max((request.num_output_tokens for request in requests), default=1)
        for number, request in enumerate(requests):
            at = request.arrived_at_s
            if at is None:
                raise ConfigError("the workload has lengths only, no arrivals: draw them first")
            prompt, output = request.num_prompt_tokens, request.num_output_tokens
            if prompt + output > self.max_model_len:
                self._ended.append(_refused(at, at, prompt))
                continue
            request_id = f"r{number}"
            self._lives[request_id] = _Life(TokenOutput(request_id), prompt, output, at, array("d"))
            most = min(max_tokens(self.limit, output, longest), self.max_model_len - prompt)
            yield at, RequestArrived(request_id, prompt, most)

    def _push_next(self, arrivals: Iterator[tuple[float, RequestArrived]]) -> None:
        for at, event in arrivals:
            self._push(at, event)
            return

    def _push(self, at: float, what: _Coming) -> None:
        heappush(self._heap, (at, self._sequence, what))
        self._sequence += 1

    def _event(self, what: _Coming, now: float) -> Event:
        if isinstance(what, RunBatch):
            sampled = [self._sample(segment.request_id, now) for segment in what.segments if segment.emits]
            return BatchCompleted(what.batch_id, tuple(sampled))
        return KVMigrated(what.migration_id) if isinstance(what, MigrateKV) else what

    def _sample(self, request_id: str, now: float) -> TokenOutput:
        life = self._lives.get(request_id)
        if life is None:  # it ended before; this batch was queued by then
            return TokenOutput(request_id)
        life.token_times_s.append(now)
        if len(life.token_times_s) < life.num_output_tokens:
            return life.token
        del self._lives[request_id]
        record = RequestRecord(
            arrived_s=life.arrived_s, ended_s=now, num_prompt_tokens=life.num_prompt_tokens,
            num_output_tokens=life.num_output_tokens, token_times_s=life.token_times_s,
        )  # fmt: skip
        self._ended.append(SimulatedRequest(record, life.began_s, life.num_preemptions))
        return TokenOutput(request_id, "length")

    # actions

    def _submit(self, action: Action, now: float) -> None:
        match action:
            case RunBatch():
                begin_s = self._occupy(action, action.group, now)
                self._num_batches += 1
                for segment in action.segments:
                    if segment.start == 0:
                        life = self._lives[segment.request_id]
                        life.began_s = begin_s if life.began_s is None else life.began_s
            case MigrateKV():
                self._occupy(action, (action.source, action.target), now)
            case FreeKV():
                if action.reason == "preempted":
                    self._lives[action.request_id].num_preemptions += 1
            case RefuseRequest():
                life = self._lives.pop(action.request_id)
                self._ended.append(_refused(life.arrived_s, now, life.num_prompt_tokens))

    def _occupy(self, action: RunBatch | MigrateKV, instances: tuple[int, ...], now: float) -> float:
        """Put work behind all that its instances have; returns when it begins."""
        seconds = self.cost.duration(action)
        begin_s, end_s = 0.0, now + seconds.host
        for stage, (stage_s, free_at) in enumerate(zip(seconds.stages, self._free_at, strict=True)):
            end_s = max(end_s, max([free_at[instance] for instance in instances]))
            if stage == 0:
                begin_s = end_s
            if self._neighbours is None:
                end_s += stage_s
            else:
                end_s = self._neighbours.begin(action, instances, begin_s, stage_s)
            if stage == 0 and self.config.pp > 1 and isinstance(action, RunBatch):
                self._push(end_s, FirstStageFree(action.batch_id))
            for instance in instances:
                free_at[instance] = end_s
        # Where neighbours slow it down further, that is not counted.
        self.usage.work(action, begin_s, end_s, sum(seconds.stages) / len(seconds.stages))
        self._push(end_s, action)
        return begin_s


def _refused(arrived_s: float, now: float, num_prompt_tokens: int) -> SimulatedRequest:
    record = RequestRecord(
        arrived_s=arrived_s, ended_s=now, num_prompt_tokens=num_prompt_tokens, num_output_tokens=0, outcome="refused"
    )
    return SimulatedRequest(record)
