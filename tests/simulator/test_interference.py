"""Instances of one host slow each other down, as far as that was measured."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from longspan.config import SchedulerConfig
from longspan.core.costs.episode import Company
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


@pytest.mark.parametrize("factor", [1.0, 1.5, 2.0])
@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0, 2.0])
def test_two_prefills_are_slowed_down_while_both_run(share: float, factor: float) -> None:
    """share: of the first one's time alone, after which the second begins."""
    ((alone_s,),) = token_times([TraceRequest(0.0, 100, 1)])
    begin_s = share * alone_s
    (first,), (second,) = token_times(
        [TraceRequest(0.0, 100, 1), TraceRequest(begin_s, 100, 1)], measured("prefill", "prefill", factor)
    )
    together_s = factor * max(0.0, alone_s - begin_s)
    assert first == pytest.approx(min(begin_s, alone_s) + together_s)
    assert second == pytest.approx(begin_s + together_s + min(begin_s, alone_s))


def test_decodes_are_slowed_down_as_long_as_the_other_works() -> None:
    long_after = 1e9
    requests = [TraceRequest(0.0, 10, 5), TraceRequest(1.0, 3000, 1)]
    alone, _ = token_times([requests[0], replace(requests[1], arrived_at_s=long_after)])
    beside, _ = token_times(requests, measured("decode", "prefill", 2.0))
    apart = [b - a for a, b in pairwise(alone)]
    assert [b - a for a, b in pairwise(beside)] == pytest.approx([2.0 * gap for gap in apart])


def test_a_prefill_is_slowed_down_by_one_decode_after_another() -> None:
    """That begin and end while it runs."""
    requests = [TraceRequest(0.0, 10, 4), TraceRequest(1.0, 3000, 1)]
    (alone_s,) = token_times(requests[1:])[0]
    decoding, (slowed_s,) = token_times(requests, measured("prefill", "decode", 3.0))
    together_s = decoding[-1] - decoding[0]
    assert slowed_s - alone_s == pytest.approx(together_s * (1.0 - 1.0 / 3.0))


def test_without_a_measurement_nobody_disturbs_anybody() -> None:
    assert Interference.of(()) is None


def test_none_is_faster_in_company() -> None:
    """That would be noise."""
    found = Interference.of([measured("decode", "decode", 0.9)])
    assert found is not None and found.factors == {("decode", "decode"): 1.0}
