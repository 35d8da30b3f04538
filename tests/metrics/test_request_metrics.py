from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longspan.errors import ConfigError
from longspan.metrics.request_metrics import SLO, Distribution, RequestRecord, measure

OUTCOMES = ("finished", "refused", "failed", "unfinished")


def record(arrived: float, *tokens: float, prompt: int = 100, outcome: str = "finished") -> RequestRecord:
    return RequestRecord(
        arrived_s=arrived,
        ended_s=tokens[-1] if tokens else arrived,
        num_prompt_tokens=prompt,
        num_output_tokens=len(tokens),
        token_times_s=tokens,
        outcome=outcome,  # type: ignore[arg-type]
    )


@st.composite
def records(draw: st.DrawFn) -> RequestRecord:
    times = st.floats(0, 100, allow_nan=False, width=32)
    tokens = draw(st.lists(times, min_size=1, max_size=8).map(sorted))
    outcome = draw(st.sampled_from(OUTCOMES))
    arrived = draw(st.floats(0, tokens[0], width=32))
    return record(arrived, *tokens, prompt=draw(st.integers(1, 10_000)), outcome=outcome)


def test_latencies_of_one_request_by_hand() -> None:
    """Arrived at 10, tokens at 12, 13, 15: 2 s to the first, (15 - 12) / 2 a token, gaps of 1 and 2 s."""
    metrics = measure([record(10, 12, 13, 15)])
    group = metrics.classes["short"]
    assert group == metrics.classes["all"]
    assert group.ttft_s == Distribution(1, 2, 2, 2, 2, 2)
    assert group.tpot_s == Distribution(1, 1.5, 1.5, 1.5, 1.5, 1.5)
    assert group.itl_s is not None and (group.itl_s.count, group.itl_s.mean, group.itl_s.max) == (2, 1.5, 2)
    assert group.e2e_s is not None and group.e2e_s.mean == 5
    assert (group.per_token_s, group.input_s, group.output_s) == (5 / 103, 2 / 100, 1.5)
    assert (metrics.span_s, metrics.output_tokens_per_s, metrics.prompt_tokens_per_s) == (5, 3 / 5, 100 / 5)
    assert (group.slo_attainment, group.goodput) == (1, 1 / 5)


def test_a_delivery_may_carry_several_tokens() -> None:
    (speculative,) = (replace(record(0, 1, 2), num_output_tokens=5),)
    assert speculative.tpot_s == 1 / 4


def test_one_token_has_no_tpot_and_keeps_its_promise() -> None:
    metrics = measure([record(0, 1)], slo=SLO(ttft_s=1, tpot_s=0.001))
    assert metrics.classes["all"].tpot_s is None and metrics.classes["all"].itl_s is None
    assert metrics.classes["all"].slo_attainment == 1


def test_classes_by_prompt_length() -> None:
    metrics = measure([record(0, 1, prompt=9), record(0, 2, prompt=10), record(0, 4, prompt=11)], long_threshold=10)
    assert [metrics.classes[name].num_requests for name in ("all", "short", "long")] == [3, 1, 2]
    long = metrics.classes["long"].ttft_s
    assert long is not None and long.mean == 3
    assert "long" not in measure([record(0, 1)]).classes


def test_slo_counts_the_refused_and_failed_but_not_the_unfinished() -> None:
    slo = SLO(ttft_s=1.0, tpot_s=0.5)
    served = [
        record(0, 1, 1.5),  # both met, just so
        record(0, 1.25, 1.5),  # first token late
        record(0, 1, 2),  # tokens slow
        record(0, outcome="refused"),
        record(0, 0.5, outcome="failed"),
        record(0, 0.5, outcome="unfinished"),
    ]
    metrics = measure([*served, record(4, 4.5, 5)], slo=slo)
    group = metrics.classes["all"]
    assert group.slo_attainment == 2 / 6
    assert group.goodput == 2 / 5
    assert (group.num_requests, group.num_finished, group.num_refused, group.num_failed, group.num_unfinished) == (
        7, 4, 1, 1, 1,
    )  # fmt: skip


def test_nothing_measured() -> None:
    metrics = measure([])
    assert metrics.span_s == 0 and metrics.classes["all"].goodput == 0
    assert metrics.classes["all"].slo_attainment is None and metrics.classes["all"].ttft_s is None


@given(st.lists(records(), max_size=30), st.floats(0.01, 50), st.floats(0.01, 50))
def test_parts_make_the_whole(served: list[RequestRecord], ttft: float, tpot: float) -> None:
    metrics = measure(served, slo=SLO(ttft_s=ttft, tpot_s=tpot), long_threshold=500)
    everyone = metrics.classes["all"]
    parts = [group for name, group in metrics.classes.items() if name != "all"]
    for name in ("num_requests", "num_finished", "num_refused", "num_failed", "num_unfinished", "output_tokens"):
        assert sum(getattr(part, name) for part in parts) == getattr(everyone, name)
    assert sum(part.goodput for part in parts) == pytest.approx(everyone.goodput)
    assert everyone.goodput <= metrics.requests_per_s * (1 + 1e-9)
    for group in metrics.classes.values():
        for d in (group.ttft_s, group.tpot_s, group.itl_s, group.e2e_s):
            assert d is None or d.p50 <= d.p90 <= d.p99 <= d.max
        assert group.slo_attainment is None or 0 <= group.slo_attainment <= 1


@given(st.lists(records(), min_size=1, max_size=10), st.integers(-1000, 1000))
def test_only_differences_of_times_count(served: list[RequestRecord], shift: int) -> None:
    moved = [
        replace(
            r,
            arrived_s=r.arrived_s + shift,
            ended_s=r.ended_s + shift,
            token_times_s=[time + shift for time in r.token_times_s],
        )
        for r in served
    ]
    before, after = measure(served).classes["all"], measure(moved).classes["all"]
    for name in ("per_token_s", "input_s", "output_s", "slo_attainment"):
        assert getattr(after, name) == pytest.approx(getattr(before, name), abs=1e-9)


@given(st.lists(records(), max_size=20), st.floats(0.01, 50), st.floats(1, 3))
def test_a_looser_slo_is_met_at_least_as_often(served: list[RequestRecord], ttft: float, factor: float) -> None:
    tight = measure(served, slo=SLO(ttft_s=ttft, tpot_s=ttft)).classes["all"].goodput
    assert measure(served, slo=SLO(ttft_s=ttft * factor, tpot_s=ttft * factor)).classes["all"].goodput >= tight


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50))
def test_percentiles_lie_where_their_share_of_values_does(values: list[float]) -> None:
    d = Distribution.of([*values, None])
    assert d is not None and d.count == len(values) and d.max == max(values)
    for share, p in ((0.5, d.p50), (0.9, d.p90), (0.99, d.p99)):
        assert sum(value <= p + 1e-6 for value in values) >= share * (len(values) - 1)
        assert sum(value >= p - 1e-6 for value in values) >= (1 - share) * (len(values) - 1)


def test_an_slo_above_zero_only() -> None:
    with pytest.raises(ConfigError, match="tpot is 0"):
        SLO(tpot_s=0)
