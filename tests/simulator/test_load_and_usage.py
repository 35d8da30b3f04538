"""What a fleet would have to do, and what its instances did."""

from __future__ import annotations

import pytest

from longspan.config import SchedulerConfig
from longspan.core.actions import MigrateKV, RunBatch
from longspan.core.costs.batch_shape import BatchShape
from longspan.core.costs.cost_model import Chunk
from longspan.simulator.load import instance_seconds, offered_load
from longspan.simulator.simulator import Simulator
from longspan.simulator.spread import evenly_spread
from longspan.simulator.usage import MOST_SAMPLES, Usage
from longspan.workload.traces import TraceRequest
from longspan.workload.transforms import at_rate

from .examples import TINY, cost_of, machine, small_world, workload


def test_load_by_hand() -> None:
    """Prompts of ten tokens that yield one: nothing but prefills, of a second each, on two instances."""
    shape = TINY.shape
    flops = 10 * shape.flops_per_token + 55 * shape.flops_per_pair + 2 * shape.head_parameters
    cost = cost_of(machine({"flops": flops}), instances=2)
    config = SchedulerConfig(num_instances=2, kv_tokens=1000)
    requests = [TraceRequest(0.25 * number, 10, 1) for number in range(9)]
    assert instance_seconds(requests[0], cost, config) == pytest.approx(1.0)
    assert offered_load(requests, cost, config) == pytest.approx(2.0)
    assert offered_load(requests[:1], cost, config) is None


def test_a_request_too_large_for_one_instance_takes_several() -> None:
    config, cost = small_world("elastic_fcfs", instances=4, kv_tokens=4000)
    small, large = TraceRequest(0.0, 3990, 10), TraceRequest(0.0, 4000, 10)
    assert instance_seconds(large, cost, config) > 1.2 * instance_seconds(small, cost, config)


def test_beyond_its_capacity_a_fleet_falls_behind() -> None:
    """And below, it keeps up: the last request ends soon after it came."""
    config, cost = small_world("replicated", instances=2, kv_tokens=100_000)
    base = workload(seed=5, number=400)
    load = offered_load(base, cost, config)
    assert load is not None
    late = {}
    for wanted in (0.3, 3.0):
        rate = 40.0 * wanted / load
        requests = at_rate(base, rate)
        assert offered_load(requests, cost, config) == pytest.approx(wanted, rel=0.15)
        result = Simulator(config, cost).run(requests)
        late[wanted] = result.ended_s / (requests[-1].arrived_at_s or 1.0)
    assert late[0.3] < 1.3
    assert late[3.0] > 1.6


def batch(*lengths: int, context: int = 0, requests: int = 0) -> RunBatch:
    chunks = tuple(Chunk(length, context) for length in lengths)
    return evenly_spread(
        BatchShape(num_instances=2, chunks=chunks, num_requests=requests, context_tokens=9 * requests, num_masters=1)
    )


def test_spans_join_what_goes_on_without_a_pause() -> None:
    usage = Usage(3)
    usage.work(batch(8), 0.0, 1.0, 1.0)
    usage.work(batch(requests=2), 1.0, 1.1, 0.1)
    usage.work(batch(requests=2), 1.1, 1.2, 0.1)
    usage.work(batch(requests=1), 1.25, 1.35, 0.1)
    usage.work(batch(requests=1), 3.0, 3.1, 0.1)
    usage.work(batch(4, context=4, requests=1), 4.0, 4.5, 0.5)
    usage.work(MigrateKV(0, "a", 2, 0, ((0, 3),)), 5.0, 5.5, 0.5)
    spans = [(span.kind, span.begin_s, span.end_s, span.group) for span in usage.spans]
    assert spans == [
        ("prefill", 0.0, 1.0, (0, 1)),
        ("decode", 1.0, 1.35, (0, 1)),
        ("decode", 3.0, 3.1, (0, 1)),
        ("mixed", 4.0, 4.5, (0, 1)),
        ("migration", 5.0, 5.5, (2, 0)),
    ]
    assert usage.busy_s == pytest.approx([2.4, 1.9, 0.5])
    assert usage.group_s == pytest.approx(
        {("prefill", 2): 1.0, ("decode", 2): 0.4, ("mixed", 2): 0.5, ("migration", 2): 0.5}
    )


def test_however_long_it_runs_samples_are_few_and_cover_all() -> None:
    usage = Usage(1)
    now = 0.0
    while now < 5000.0:
        if now >= usage.next_sample_s:
            usage.kv(now, (100 if now < 2500 else 300,))
        now += 0.01
    assert MOST_SAMPLES / 4 < len(usage.samples) <= MOST_SAMPLES
    assert usage.sample_times_s[0] == 0.0 and usage.sample_times_s[-1] > 4990
    assert usage.mean_kv() == pytest.approx([200], rel=0.01)
