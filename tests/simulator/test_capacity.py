"""The highest rate and the fewest instances, and what is fair to promise."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longspan.config import SchedulerConfig
from longspan.metrics.request_metrics import SLO, RequestRecord
from longspan.profiler.simulated import fit_simulated
from longspan.simulator.capacity import RATE_TOLERANCE, Goal, faster, fewest, highest
from longspan.simulator.slo import LengthAwareSLO
from longspan.workload.traces import TraceRequest

from .examples import cost_of, machine, small_world, workload


@given(st.floats(1e-5, 1e5), st.floats(1e-3, 1e3))
def test_the_highest_is_found_from_any_guess(limit: float, guess: float) -> None:
    found = highest(lambda rate: rate <= limit, guess)
    assert limit / (1 + RATE_TOLERANCE) <= found <= limit


def test_no_rate_is_low_enough() -> None:
    assert highest(lambda rate: False, 1.0) == 0.0


@given(st.integers(1, 200), st.integers(1, 200))
def test_the_fewest_is_found(limit: int, most: int) -> None:
    assert fewest(lambda number: number >= limit, most) == (limit if limit <= most else None)


def test_faster_keeps_the_pattern() -> None:
    requests = [TraceRequest(1.0, 5, 1), TraceRequest(3.0, 6, 1), TraceRequest(3.0, 7, 1)]
    assert [(r.arrived_at_s, r.num_prompt_tokens) for r in faster(requests, 4.0)] == [(0.25, 5), (0.75, 6), (0.75, 7)]


def test_a_fleet_attains_less_the_faster_requests_come() -> None:
    config, cost = small_world("elastic_fcfs", instances=2, kv_tokens=100_000)
    model = fit_simulated(cost, config, 8000)
    requests = workload(seed=6, number=150)
    goal = Goal(slo=SLO(ttft_s=1.0), long_threshold=1000)
    slow, fast = (goal.try_out(faster(requests, factor), config, cost, model).attainment for factor in (0.02, 3.0))
    assert slow > 0.95
    assert fast < 0.5


def test_each_class_must_be_served() -> None:
    """One request in ten is long, and late: nine tenths are in time, of the long ones nobody."""
    config, cost = small_world("elastic_fcfs", instances=1, kv_tokens=100_000)
    model = fit_simulated(cost, config, 8000)
    requests = [TraceRequest(10.0 * n, 30_000 if n == 5 else 10, 1) for n in range(10)]
    assert Goal(slo=SLO(ttft_s=0.5), long_threshold=100).try_out(requests, config, cost, model).attainment == 0.0
    assert Goal(slo=SLO(ttft_s=0.5), long_threshold=10**6).try_out(requests, config, cost, model).attainment == 0.9


def record(prompt: int, ttft_s: float, tpot_s: float = 0.0) -> RequestRecord:
    return RequestRecord(
        arrived_s=1.0, ended_s=9e9, num_prompt_tokens=prompt, num_output_tokens=2,
        token_times_s=(1.0 + ttft_s, 1.0 + ttft_s + tpot_s),
    )  # fmt: skip


def test_a_promise_in_proportion_to_length() -> None:
    """Two instances halve the second that a thousand tokens take on one; the floor is for those below 200."""
    shape = cost_of(machine()).fleet.model.shape
    one_second = 1000 * shape.flops_per_token + 500 * 1001 * shape.flops_per_pair + 2 * shape.head_parameters
    costs = [cost_of(machine({"flops": one_second}), instances=instances) for instances in (1, 2)]
    config = SchedulerConfig(ttft_slo_factor=3.0, ttft_slo_floor_s=0.1, tpot_slo_s=0.05)
    alone, together = (LengthAwareSLO.of(config, some) for some in (costs[:1], costs))
    assert alone.alone(1000) == pytest.approx(1.0)
    assert alone.met_by(record(1000, 2.9)) and not alone.met_by(record(1000, 3.1))
    assert together.met_by(record(1000, 1.45)) and not together.met_by(record(1000, 1.55))
    assert alone.met_by(record(1, 0.09)) and not alone.met_by(record(1, 0.11))
    assert alone.met_by(record(1, 0.09, tpot_s=0.04)) and not alone.met_by(record(1, 0.09, tpot_s=0.06))
    refused = RequestRecord(arrived_s=0, ended_s=0, num_prompt_tokens=1, num_output_tokens=0, outcome="refused")
    assert not alone.met_by(refused)
