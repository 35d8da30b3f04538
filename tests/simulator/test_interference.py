"""Instances of one host slow each other down, as far as that was measured."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from longspan.config import SchedulerConfig
from longspan.core.episode import Company
from longspan.sib import MeasuredInterference
from longspan.simulator.interference import Interference
from longspan.simulator.simulator import Simulator
from longspan.workload.traces import TraceRequest

from .examples import cost_of, machine

KV_TOKENS = 4000


def measured(kind: Company, beside: Company, factor: float) -> MeasuredInterference:
    return MeasuredInterference(kind=kind, beside=beside, factor=factor, samples=1)


def token_times(requests: list[TraceRequest], *found: MeasuredInterference) -> list[list[float]]:
    """Of each request, by its arrival; each instance serves its own."""
    one_host = replace(machine({"flops": 1.0}), interference=Interference.of(found))
    config = SchedulerConfig(num_instances=2, kv_tokens=KV_TOKENS, policy="replicated", lookahead=False)
    records = Simulator(config, cost_of(one_host, instances=2)).run(requests).records()
    return [list(record.token_times_s) for record in sorted(records, key=lambda record: record.arrived_s)]


def test_a_prefill_that_begins_beside_another_takes_longer() -> None:
    requests = [TraceRequest(0.0, 100, 1), TraceRequest(1.0, 100, 1)]
    (first,), (second,) = token_times(requests)
    assert second - 1.0 == pytest.approx(first)
    (first_beside,), (second_beside,) = token_times(requests, measured("prefill", "prefill", 1.5))
    assert first_beside == first, "it was alone when it began"
    assert second_beside - 1.0 == pytest.approx(1.5 * first)


def test_decodes_are_slowed_down_as_long_as_the_other_works() -> None:
    long_after = 1e9
    requests = [TraceRequest(0.0, 10, 5), TraceRequest(1.0, 3000, 1)]
    alone, _ = token_times([requests[0], replace(requests[1], arrived_at_s=long_after)])
    beside, _ = token_times(requests, measured("decode", "prefill", 2.0))
    apart = [b - a for a, b in pairwise(alone)]
    assert [b - a for a, b in pairwise(beside)] == pytest.approx([2.0 * gap for gap in apart])


def test_without_a_measurement_nobody_disturbs_anybody() -> None:
    assert Interference.of(()) is None


def test_none_is_faster_in_company() -> None:
    """That would be noise."""
    found = Interference.of([measured("decode", "decode", 0.9)])
    assert found is not None and found.extra == {("decode", "decode"): 0.0}
