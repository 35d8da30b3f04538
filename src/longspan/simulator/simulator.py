"""The unchanged scheduler on a virtual clock, with requests of a trace, on machines as they are described.

How long work takes is for `cost.py` to say, and for `interference.py` where instances slow each other down.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from longspan.config import SchedulerConfig
from longspan.core.actions import (
    Action,
    CancelBatch,
    InstanceDrained,
    RefuseReason,
    RefuseRequest,
    RunBatch,
    StopRequest,
)
from longspan.core.costs.cost_model import FittedCostModel
from longspan.core.events import (
    BatchCompleted,
    Event,
    FleetEvent,
    InstanceJoined,
    InstanceLost,
    RequestArrived,
    TokenOutput,
)
from longspan.core.hierarchy import make_scheduler
from longspan.core.internal_error import InternalError
from longspan.core.policies.base import Policy
from longspan.errors import ConfigError
from longspan.metrics.event_log import EventLogWriter
from longspan.metrics.request_metrics import RequestRecord
from longspan.simulator.cost import IterationCost, Seconds
from longspan.simulator.driver import Driver, Told, Work
from longspan.simulator.fleet_events import FleetTimes
from longspan.simulator.limits import OutputLimit, max_tokens
from longspan.simulator.losses import Losses
from longspan.simulator.prefixes import Prefixes
from longspan.simulator.usage import Usage
from longspan.workload.traces import TraceRequest

_REPORT_EVERY = 1024  # events


@dataclass(frozen=True, slots=True)
class SimulatedRequest:
    """A request's course.

    began_s: when the first batch that it is in began; None if it was refused. num_recomputed: tokens of it that were
    computed again. refusal: why it was. tenant: whose it is.
    """

    record: RequestRecord
    began_s: float | None = None
    num_preemptions: int = 0
    num_recomputed: int = 0
    refusal: RefuseReason | None = None
    tenant: str | None = None


@dataclass(frozen=True, slots=True)
class Simulation:
    """The outcome of a simulation.

    requests: finished ones in the order in which they ended. ended_s: of the last event. num_batches: iterations.
    prefixes: how much was found computed; all 0 without the knob `prefix_cache`, and where the trace tells no blocks.
    losses: instances that were lost or have left, and what that has cost.
    """

    requests: list[SimulatedRequest]
    usage: Usage
    ended_s: float
    num_events: int
    num_batches: int
    prefixes: Prefixes
    losses: Losses

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
    tenant: str | None
    began_s: float | None = None
    num_preemptions: int = 0


class Simulator(Driver):
    """One run. Requests come in order of arrival; the same arguments give the same result to the bit.

    One that is refused does not come again, as those of a trace that was recorded elsewhere.

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
        fleet_events: FleetTimes = (),
    ) -> None:
        """fleet_events: when instances are lost, leave and join, see `fleet_events.py`."""
        if config.num_instances != cost.fleet.instances:
            raise ConfigError(f"the scheduler has {config.num_instances} instances, the fleet {cost.fleet.instances}")
        if config.pp != cost.fleet.pp:
            raise ConfigError(f"the scheduler has {config.pp} pipeline stages, the fleet {cost.fleet.pp}")
        super().__init__(make_scheduler(config, policy, cost_model), cost.duration, cost.fleet.machine.interference)
        self.config = config
        self.cost = cost
        self.max_model_len = min(config.of_node().total_kv_tokens, max_model_len or config.total_kv_tokens)
        self.limit = limit
        self.event_log = event_log
        self.on_progress = on_progress
        self.usage = Usage(config.num_instances)
        self.prefixes = Prefixes(config.prefix_block)
        self.losses = Losses()
        self._fleet_coming = iter(fleet_events)
        self._returning = {event.instance for _, event in fleet_events if isinstance(event, InstanceJoined)}
        self._coming: Iterator[tuple[float, RequestArrived]] = iter(())
        self._lives: dict[str, _Life] = {}
        self._ended: list[SimulatedRequest] = []
        self._num_events = 0
        self._num_batches = 0
        self._has_all_arrived = False

    def run(self, requests: Sequence[TraceRequest]) -> Simulation:
        """Run until every request has ended. Raises InternalError: the policy leaves some waiting for ever."""
        self._coming = self._arrivals(requests)
        self._push_next()
        self._push_fleet()
        self.run_out()
        if self._lives:
            raise InternalError(
                f"the policy {self.scheduler.policy.name!r} rests, but {len(self._lives)} requests are alive"
            )
        self.scheduler.check_invariants()
        self.on_progress(len(self._ended), self.now)
        return Simulation(
            self._ended, self.usage, self.now, self._num_events, self._num_batches, self.prefixes, self.losses
        )

    # who comes

    def _arrivals(self, requests: Sequence[TraceRequest]) -> Iterator[tuple[float, RequestArrived]]:
        """One by one, so that only requests that have arrived take memory here."""
        longest = max((request.num_output_tokens for request in requests), default=1)
        for number, request in enumerate(requests):
            at = request.arrived_at_s
            if at is None:
                raise ConfigError("the workload has lengths only, no arrivals: draw them first")
            prompt, output = request.num_prompt_tokens, request.num_output_tokens
            if prompt + output > self.max_model_len:
                self._ended.append(_refused(at, at, prompt, "too_long", request.service.tenant))
                continue
            request_id = f"r{number}"
            service = request.service
            self._lives[request_id] = _Life(TokenOutput(request_id), prompt, output, at, array("d"), service.tenant)
            most = min(max_tokens(self.limit, output, longest), self.max_model_len - prompt)
            keys = self.prefixes.keys(request) if self.config.prefix_cache else b""
            yield at, RequestArrived(request_id, prompt, most, service, keys)

    def _push_next(self) -> None:
        for at, event in self._coming:
            self.push(at, event)
            return
        self._has_all_arrived = True

    def _push_fleet(self) -> None:
        for at, event in self._fleet_coming:
            self.push(at, event)
            return

    # what the driver asks and tells

    def _changes(self, event: FleetEvent) -> bool:
        if not self._lives and self._has_all_arrived:
            return False
        self._push_fleet()
        self.losses.num_lost += isinstance(event, InstanceLost)
        return True

    def _arrives(self, request: RequestArrived) -> None:
        self._push_next()

    def _sample(self, request_id: str) -> TokenOutput:
        life = self._lives.get(request_id)
        if life is None:  # it ended before; this batch was queued by then
            return TokenOutput(request_id)
        life.token_times_s.append(self.now)
        if len(life.token_times_s) < life.num_output_tokens:
            return life.token
        del self._lives[request_id]
        record = RequestRecord(
            arrived_s=life.arrived_s, ended_s=self.now, num_prompt_tokens=life.num_prompt_tokens,
            num_output_tokens=life.num_output_tokens, token_times_s=life.token_times_s,
        )  # fmt: skip
        recomputed = self.losses.recomputed_of(request_id)
        self._ended.append(SimulatedRequest(record, life.began_s, life.num_preemptions, recomputed, tenant=life.tenant))
        return TokenOutput(request_id, "length")

    def _submitted(self, work: Work, begin_s: float, end_s: float, seconds: Seconds) -> None:
        # Where neighbours slow it down further, that is not counted.
        self.usage.work(work, begin_s, end_s, sum(seconds.stages) / len(seconds.stages))
        if isinstance(work, RunBatch):
            self._num_batches += 1
            self.losses.issued(work)
            for segment in work.segments:
                life = self._lives.get(segment.request_id)  # None: it has ended, and this was queued by then
                if life is not None and life.began_s is None:
                    life.began_s = begin_s
                    if self.prefixes.num_arrived:
                        self.prefixes.begin(life.num_prompt_tokens, segment.start)

    def _told(self, action: Told) -> None:
        if isinstance(action, RefuseRequest):
            life = self._lives.pop(action.request_id)
            refused = _refused(life.arrived_s, self.now, life.num_prompt_tokens, action.reason, life.tenant)
            self._ended.append(refused)
        elif isinstance(action, StopRequest):
            if action.reason == "preempted":
                self._lives[action.request_id].num_preemptions += 1
            else:
                self.losses.forget(action.request_id)
        elif isinstance(action, CancelBatch):
            self.losses.void(action.batch_ids)
        elif isinstance(action, InstanceDrained):
            self.push(self.now, InstanceLost(action.instance, action.instance in self._returning))

    def _handled(self, event: Event, actions: list[Action]) -> None:
        if self.event_log is not None:
            self.event_log.write(self.now, event, actions, self.scheduler.decisions)
        if self.now >= self.usage.next_sample_s:
            self.usage.kv(self.now, self.scheduler.stats().kv_tokens_used)
        if isinstance(event, BatchCompleted):
            self.losses.completed(event.batch_id)
        self._num_events += 1
        if self._num_events % _REPORT_EVERY == 0:
            self.on_progress(len(self._ended), self.now)


def _refused(
    arrived_s: float, now: float, num_prompt_tokens: int, reason: RefuseReason, tenant: str | None
) -> SimulatedRequest:
    record = RequestRecord(
        arrived_s=arrived_s, ended_s=now, num_prompt_tokens=num_prompt_tokens, num_output_tokens=0, outcome="refused"
    )
    return SimulatedRequest(record, refusal=reason, tenant=tenant)
