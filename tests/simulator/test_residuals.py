"""Factors between measured iterations: exact where they were measured, between what is near elsewhere."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longspan.core.actions import RunBatch
from longspan.core.costs.batch_shape import BatchShape
from longspan.core.costs.cost_model import Chunk
from longspan.simulator.residuals import Residuals
from longspan.simulator.spread import evenly_spread

from .examples import cost_of, machine


def prefill(length: int, context: int = 0, instances: int = 1) -> RunBatch:
    return evenly_spread(BatchShape(num_instances=instances, chunks=(Chunk(length, context),)))


def decode(requests: int, context: int, instances: int = 1, masters: int = 1) -> RunBatch:
    shape = BatchShape(
        num_instances=instances, num_requests=requests, context_tokens=requests * context, num_masters=masters
    )
    return evenly_spread(shape)


def test_each_kind_has_factors_of_its_own() -> None:
    slow = Residuals.of([(prefill(64), 3.0), (decode(2, 100), 5.0)])
    assert slow.factor(prefill(1000)) == pytest.approx(3.0)
    assert slow.factor(decode(40, 7)) == pytest.approx(5.0)
    assert slow.factor(prefill(64, instances=2)) == 1.0
    assert slow.factor(decode(2, 100, instances=2, masters=2)) == 1.0


def test_mixed_iterations_count_as_prefills_until_one_was_measured() -> None:
    chunk, token = prefill(64).segments[0], decode(1, 100).segments[0]
    mixed = RunBatch(0, (0,), (chunk, token))
    measured = [(prefill(64), 3.0), (decode(1, 100), 5.0)]
    assert Residuals.of(measured).factor(mixed) == pytest.approx(3.0)
    found = Residuals.of([*measured, (mixed, 4.0)])
    assert found.factor(mixed) == pytest.approx(4.0)
    assert found.factor(prefill(64)) == pytest.approx(3.0)


def test_near_ones_count_most() -> None:
    found = Residuals.of([(prefill(16), 1.5), (prefill(4096), 0.5), (prefill(4096, context=4096), 4.0)])
    assert found.factor(prefill(16)) == pytest.approx(1.5, rel=0.02)
    assert found.factor(prefill(4096)) == pytest.approx(0.5, rel=0.02)
    assert found.factor(prefill(4000, context=3000)) == pytest.approx(4.0, rel=0.02)
    assert 0.5 < found.factor(prefill(256)) < 1.5


@given(
    points=st.dictionaries(st.integers(1, 5000), st.floats(0.1, 10.0), min_size=1, max_size=6),
    asked=st.integers(1, 9000),
)
def test_no_factor_is_beyond_those_measured(points: dict[int, float], asked: int) -> None:
    found = Residuals.of([(decode(n, 50), seconds) for n, seconds in points.items()])
    assert min(points.values()) * 0.999 <= found.factor(decode(asked, 50)) <= max(points.values()) * 1.001


def test_a_machine_with_residuals_takes_as_long_as_was_measured() -> None:
    plain = machine({"flops": 1.0})
    cost = cost_of(plain)
    measured = [(prefill(10), 2.0), (prefill(1000), 0.5)]
    seconds = cost_of(replace(plain, residuals=Residuals.of(measured)))
    for batch, factor in measured:
        assert seconds.batch(batch).total == pytest.approx(factor * cost.batch(batch).total, rel=0.02)
