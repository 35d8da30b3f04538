"""The default TPOT and the least deadline follow the machine's costs and the objective."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longspan.config import DEFAULT_TPOT_S, DEFAULT_TTFT_FLOOR_S
from longspan.tuning.targets import AIMS, targets
from tests.core.cost_models import scaling_model

SECONDS = st.floats(1e-6, 10.0)


def test_where_chunks_cost_little_the_tpot_is_the_usual_one() -> None:
    aims = targets(scaling_model(1, fixed=0.004, fixed_step=0.0, decode_fixed=0.004), "balanced")
    assert (aims.tpot_s, aims.ttft_floor_s) == (DEFAULT_TPOT_S, DEFAULT_TTFT_FLOOR_S)
    assert "between 50 ms and 75 ms" in aims.reason


def test_it_leaves_a_chunk_most_of_an_iteration() -> None:
    aims = targets(scaling_model(1, fixed=0.012, fixed_step=0.0, decode_fixed=0.004), "balanced")
    assert aims.tpot_s == pytest.approx(0.012 / 0.2)
    assert "12 ms whatever its size" in aims.reason


def test_decodes_alone_can_keep_it() -> None:
    """A machine on which a token takes a second has no use for a target of 50 ms."""
    for objective, aim in AIMS.items():
        aims = targets(scaling_model(1, decode_fixed=1.0, decode_step=0.0, per_request=0.0), objective)
        assert aims.tpot_s == aim.decodes
        assert "a decode step takes 1e+03 ms" in aims.reason


def test_a_machine_that_takes_a_second_for_any_prompt_has_longer_deadlines() -> None:
    slow = targets(scaling_model(1, fixed=0.2, fixed_step=0.0), "balanced")
    assert slow.ttft_floor_s == pytest.approx(2.5 * 0.2 / 0.05)


@given(fixed=SECONDS, decode=SECONDS)
def test_latency_is_tighter_than_throughput(fixed: float, decode: float) -> None:
    model = scaling_model(1, fixed=fixed, fixed_step=0.0, decode_fixed=decode, decode_step=0.0)
    tpots = [targets(model, objective).tpot_s for objective in ("latency", "balanced", "throughput")]
    assert tpots == sorted(tpots)
    assert tpots[0] < tpots[-1]
    assert min(tpots) > model.decode(1, 0, 1, 1)
