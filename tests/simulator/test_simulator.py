"""The scheduler on a virtual clock: nothing is lost, nothing is random, and times are what the cost says."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan.config import SchedulerConfig
from longspan.core.actions import FreeKV, MigrateKV, RunBatch, StopRequest
from longspan.core.costs.batch_shape import BatchShape
from longspan.core.costs.cost_model import Chunk
from longspan.core.events import BatchCompleted, KVMigrated, RequestArrived
from longspan.core.internal_error import InternalError
from longspan.core.news import News
from longspan.core.policies.base import Policy
from longspan.core.state import SchedulerState
from longspan.errors import ConfigError
from longspan.metrics.event_log import EventLogWriter, read_event_log, replay
from longspan.profiler.simulated import fit_simulated, measure_simulated
from longspan.service_level import DEFAULT_SERVICE, ServiceLevel
from longspan.simulator.limits import OutputLimit
from longspan.simulator.simulator import Simulation, Simulator
from longspan.simulator.spread import evenly_spread
from longspan.workload.traces import TraceRequest
from tests.core.settings import EVERY_POLICY

from ..core.worker_model import WorkerModel
from .examples import cost_of, machine, small_world, workload

LONGEST_CONTEXT = 8000


def simulate(policy: str, requests: list[TraceRequest], log: Path | None = None) -> tuple[Simulator, Simulation]:
    config, cost = small_world(policy)
    cost_model = fit_simulated(cost, config, LONGEST_CONTEXT)
    if log is None:
        simulator = Simulator(config, cost, cost_model=cost_model)
        return simulator, simulator.run(requests)
    with EventLogWriter(log, config, cost_model, run="test") as writer:
        simulator = Simulator(config, cost, cost_model=cost_model, event_log=writer)
        return simulator, simulator.run(requests)


@pytest.mark.parametrize("policy", EVERY_POLICY)
def test_everyone_gets_exactly_what_was_asked_for(policy: str) -> None:
    requests = workload(seed=1)
    simulator, result = simulate(policy, requests)
    finished = [request for request in result.requests if request.record.finished]
    refused = [request.record for request in result.requests if not request.record.finished]
    assert len(finished) + len(refused) == len(requests)
    limit = max(request.num_output_tokens for request in requests)
    assert all(record.num_prompt_tokens + limit > simulator.config.kv_tokens for record in refused)
    asked = sorted((r.arrived_at_s, r.num_prompt_tokens, r.num_output_tokens) for r in requests)
    refused_arrivals = {record.arrived_s for record in refused}
    got = [(r.record.arrived_s, r.record.num_prompt_tokens, len(r.record.token_times_s)) for r in finished]
    assert sorted(got) == [row for row in asked if row[0] not in refused_arrivals]
    for request in finished:
        times = request.record.token_times_s
        assert request.began_s is not None
        assert request.record.arrived_s <= request.began_s < times[0]
        assert all(early < late for early, late in itertools.pairwise(times))
    assert simulator.scheduler.idle()
    assert sum(simulator.scheduler.stats().kv_tokens_used) == 0


@given(seed=st.integers(0, 10**6), rate=st.sampled_from([2.0, 20.0, 1000.0]), lookahead=st.booleans())
@settings(max_examples=25)
def test_crowds_and_trickles_end(seed: int, rate: float, lookahead: bool) -> None:
    """Among them some that preempt each other; the books are checked at the end of every run."""
    config, cost = small_world("elastic_fcfs", instances=2, kv_tokens=1700)
    requests = workload(seed, number=30, longest=3000, rate=rate)
    result = Simulator(replace(config, lookahead=lookahead), cost).run(requests)
    assert sum(len(r.record.token_times_s) for r in result.requests) == sum(r.num_output_tokens for r in requests)


def test_a_preempted_request_is_computed_again() -> None:
    config, cost = small_world("elastic_fcfs", instances=1, kv_tokens=400)
    requests = [TraceRequest(0.001 * number, 150, 200) for number in range(3)]
    result = Simulator(config, cost).run(requests)
    assert sum(request.num_preemptions for request in result.requests) > 0
    assert [len(request.record.token_times_s) for request in result.requests] == [200] * 3


@pytest.mark.parametrize("policy", EVERY_POLICY)
def test_its_event_log_replays_and_workers_could_have_done_it(policy: str, tmp_path: Path) -> None:
    simulate(policy, workload(seed=2), log=tmp_path / "log")
    assert replay(tmp_path / "log") is None
    log = read_event_log(tmp_path / "log")
    workers = WorkerModel(log.config.num_instances, log.config.kv_tokens)
    issued: dict[tuple[type, int], RunBatch | MigrateKV] = {}
    for record in log:
        if isinstance(record.event, BatchCompleted):
            workers.complete(issued.pop((RunBatch, record.event.batch_id)))
        elif isinstance(record.event, KVMigrated):
            workers.complete(issued.pop((MigrateKV, record.event.migration_id)))
        for action in record.actions:
            if isinstance(action, RunBatch):
                issued[RunBatch, action.batch_id] = action
            elif isinstance(action, MigrateKV):
                issued[MigrateKV, action.migration_id] = action
            if isinstance(action, RunBatch | MigrateKV | FreeKV | StopRequest):
                workers.submit(action)
    assert workers.is_empty


def test_the_same_again_is_the_same_to_the_bit(tmp_path: Path) -> None:
    for name in ("one", "two"):
        simulate("elastic_fcfs", workload(seed=3), log=tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    simulate("elastic_fcfs", workload(seed=4), log=tmp_path / "other")
    assert (tmp_path / "one").read_bytes() != (tmp_path / "other").read_bytes()


@pytest.mark.parametrize("lookahead", [False, True])
def test_a_lone_request_by_hand(lookahead: bool) -> None:
    """Looking ahead, the host's part of a decode hides behind the decode before it, save for the first one."""
    overheads = {"iteration_s": 0.5, "layer_s": 1.0}
    cost = cost_of(machine({"flops": 1e3, "memory_bandwidth": 1e4}, overheads))
    config = SchedulerConfig(policy="elastic_fcfs", num_instances=1, kv_tokens=1000, lookahead=lookahead)
    result = Simulator(config, cost).run([TraceRequest(2.0, 10, 4)])
    prefill = cost.batch(evenly_spread(BatchShape(num_instances=1, chunks=(Chunk(10),))))
    decodes = [
        cost.batch(evenly_spread(BatchShape(num_instances=1, num_requests=1, context_tokens=n, num_masters=1)))
        for n in (10, 11, 12)
    ]
    expected = [2.0 + prefill.total]
    for number, seconds in enumerate(decodes):
        expected.append(expected[-1] + seconds.device + (seconds.host if number == 0 or not lookahead else 0.0))
    (request,) = result.requests
    assert list(request.record.token_times_s) == pytest.approx(expected)
    assert request.began_s == pytest.approx(2.0 + prefill.host)
    busy_s = prefill.device + sum(seconds.device for seconds in decodes)
    assert result.usage.busy_s == pytest.approx([busy_s])


@pytest.mark.parametrize("lookahead", [False, True])
def test_what_queueing_saves_where_nothing_else_of_the_host_is_known(lookahead: bool) -> None:
    cost = cost_of(machine({}, {"layer_s": 1.0, "unqueued_s": 0.25}))
    config = SchedulerConfig(policy="elastic_fcfs", num_instances=1, kv_tokens=1000, lookahead=lookahead)
    (request,) = Simulator(config, cost).run([TraceRequest(0.0, 10, 4)]).requests
    apart = [b - a for a, b in itertools.pairwise(request.record.token_times_s)]
    assert apart == pytest.approx([2.25, 2.0, 2.0] if lookahead else [2.25] * 3)


@pytest.mark.parametrize("host_s", [0.25, 3.0])
@pytest.mark.parametrize("kind", ["iteration_s", "unqueued_s"])
def test_a_simulated_profile_measures_decodes_in_a_row_as_a_real_one_does(kind: str, host_s: float) -> None:
    """Whether devices wait for the host, or it for them."""
    cost = cost_of(machine({}, {"layer_s": 1.0, kind: host_s}))
    config = SchedulerConfig(policy="elastic_fcfs", num_instances=1, kv_tokens=1000)
    (request,) = Simulator(config, cost).run([TraceRequest(0.0, 10, 42)]).requests
    times = request.record.token_times_s
    profile = measure_simulated(cost, config, 100)
    decodes = [point.seconds for point in profile.iterations if point.shape.kind == "decode"]
    assert decodes and decodes == pytest.approx([(times[-1] - times[1]) / 40] * len(decodes))
    assert profile.unqueued_s == pytest.approx(times[1] - times[0] - decodes[0])
    prefills = [point.seconds for point in profile.iterations if point.shape.kind == "prefill"]
    assert prefills and prefills == pytest.approx([times[0]] * len(prefills))


def test_instances_work_at_the_same_time() -> None:
    cost = cost_of(machine({}, {"layer_s": 1.0}), instances=2)
    config = SchedulerConfig(num_instances=2, kv_tokens=1000, policy="replicated")
    result = Simulator(config, cost).run([TraceRequest(0.0, 10, 1), TraceRequest(0.0, 10, 1)])
    assert [request.record.ended_s for request in result.requests] == [2.0, 2.0]


@pytest.mark.parametrize(("limit", "expected"), [("longest", [100, 100]), ("rounded", [8, 128]), ("exact", [5, 100])])
def test_what_the_scheduler_is_told_of_the_output(limit: OutputLimit, expected: list[int], tmp_path: Path) -> None:
    config, cost = small_world("elastic_fcfs")
    with EventLogWriter(tmp_path / "log", config) as writer:
        simulator = Simulator(config, cost, limit=limit, event_log=writer)
        result = simulator.run([TraceRequest(0.0, 10, 5), TraceRequest(1.0, 10, 100)])
    arrived = [record.event for record in read_event_log(tmp_path / "log")]
    assert [event.max_tokens for event in arrived if isinstance(event, RequestArrived)] == expected
    assert sorted(len(request.record.token_times_s) for request in result.requests) == [5, 100]


def test_the_scheduler_is_told_what_a_request_asks_of_its_timeliness(tmp_path: Path) -> None:
    levels = [ServiceLevel(ttft_s=0.7), DEFAULT_SERVICE]
    config, cost = small_world("medha")
    with EventLogWriter(tmp_path / "log", config, None, run="test") as writer:
        simulator = Simulator(config, cost, cost_model=fit_simulated(cost, config, LONGEST_CONTEXT), event_log=writer)
        simulator.run([TraceRequest(float(at), 10, 2, service=level) for at, level in enumerate(levels)])
    arrived = [record.event for record in read_event_log(tmp_path / "log")]
    assert [event.service for event in arrived if isinstance(event, RequestArrived)] == levels


def test_a_limit_never_turns_away_who_fits() -> None:
    config, cost = small_world("elastic_fcfs", instances=1, kv_tokens=100)
    requests = [TraceRequest(0.0, 90, 10), TraceRequest(0.0, 10, 90)]
    result = Simulator(config, cost).run(requests)
    assert all(request.record.finished for request in result.requests)


def test_who_does_not_fit_is_refused() -> None:
    config, cost = small_world("elastic_fcfs", instances=2, kv_tokens=100)
    requests = [TraceRequest(0.0, 10, 1), TraceRequest(1.0, 200, 1), TraceRequest(2.0, 60, 1)]
    ended = [(r.record.outcome, r.refusal) for r in Simulator(config, cost, max_model_len=50).run(requests).requests]
    assert sorted(ended) == [("finished", None), ("refused", "too_long"), ("refused", "too_long")]
    ended = [(r.record.outcome, r.refusal) for r in Simulator(config, cost).run(requests).requests]
    assert sorted(ended, key=str) == [("finished", None), ("finished", None), ("refused", "too_long")]
    crowd = [TraceRequest(0.0, 90, 10)] * 10
    refused = [r for r in Simulator(replace(config, max_waiting=3), cost).run(crowd).requests if not r.record.finished]
    assert refused and all((r.began_s, r.refusal) == (None, "queue_full") for r in refused)


def test_lengths_without_arrivals_are_refused() -> None:
    config, cost = small_world("elastic_fcfs")
    with pytest.raises(ConfigError, match="no arrivals"):
        Simulator(config, cost).run([TraceRequest(None, 10, 1)])
    with pytest.raises(ConfigError, match="4 instances, the fleet 2"):
        Simulator(config, small_world("elastic_fcfs", instances=2)[1])


class Idler(Policy):
    name = "idler"

    def schedule(self, state: SchedulerState, news: News, now: float) -> None:
        pass


def test_a_policy_that_rests_for_ever_is_named() -> None:
    config, cost = small_world("elastic_fcfs")
    with pytest.raises(InternalError, match="'idler' rests, but 2 requests"):
        Simulator(config, cost, policy=Idler()).run([TraceRequest(0.0, 1, 1)] * 2)


def test_no_requests_take_no_time() -> None:
    config, cost = small_world("elastic_fcfs")
    result = Simulator(config, cost).run([])
    assert (result.requests, result.num_events, result.ended_s) == ([], 0, 0.0)
