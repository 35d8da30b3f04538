"""The analytic model: how it scales, and that a few timed steps bring it where the machine is."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longspan.core.costs.analytic import Hardware, ModelShape, analytic_cost_model, calibrated_hardware
from longspan.core.costs.batch_shape import BatchShape
from longspan.core.costs.cost_model import Chunk
from longspan.core.costs.episode import Timed

LLAMA2_7B = ModelShape(
    num_layers=32, hidden_size=4096, intermediate_size=11008, num_heads=32, num_kv_heads=32, head_dim=128,
    vocab_size=32000, weight_bytes=2, kv_bytes=2,
)  # fmt: skip
A800 = Hardware(flops=180e12, bandwidth=1.6e12, link_bandwidth=200e9)


def test_sizes_of_a_known_model() -> None:
    assert LLAMA2_7B.layer_parameters + 2 * LLAMA2_7B.head_parameters == pytest.approx(6.74e9, rel=0.002)
    assert LLAMA2_7B.kv_bytes_per_token == 512 * 1024  # LoongServe section 2


def test_figures_of_the_paper() -> None:
    """LoongServe figure 3, refitted, TP 2 on 4 instances: 10 us per token, 0.194 ns per pair (eight GPUs)."""
    row = analytic_cost_model(LLAMA2_7B, A800, 4, tp=2).prefill_coefficients[3]
    assert row.per_token == pytest.approx(1.0e-5, rel=0.15)
    assert row.per_pair == pytest.approx(1.94e-10, rel=0.15)


@given(
    flops=st.floats(1e9, 1e15), bandwidth=st.floats(1e9, 1e13), exchange=st.floats(0, 1e-3),
    link=st.floats(1e8, 1e12), instances=st.integers(1, 8),
)  # fmt: skip
def test_more_instances_never_take_longer_if_exchange_is_free(
    flops: float, bandwidth: float, exchange: float, link: float, instances: int
) -> None:
    hardware = Hardware(flops=flops, bandwidth=bandwidth, link_bandwidth=link, exchange_s=exchange)
    free = analytic_cost_model(LLAMA2_7B, replace(hardware, exchange_s=0.0), instances)
    costly = analytic_cost_model(LLAMA2_7B, hardware, instances)
    prompt = [Chunk(10_000)]
    for n in range(1, instances + 1):
        assert free.prefill(prompt, n) <= free.prefill(prompt, 1)
        assert free.decode(8, 80_000, n, n) <= free.decode(8, 80_000, n, 1) <= free.decode(8, 80_000, 1, 1)
        rounds = (n - 1) * LLAMA2_7B.num_layers * exchange
        assert costly.prefill(prompt, n) == pytest.approx(free.prefill(prompt, n) + rounds)
    chunked = sum(free.prefill([Chunk(2500, start)], 1) for start in (0, 2500, 5000, 7500))
    assert chunked == pytest.approx(free.prefill(prompt, 1) + 3 * free.prefill([], 1))


@given(
    flops=st.floats(1e10, 1e15), bandwidth=st.floats(1e10, 1e13), link=st.floats(1e8, 1e12),
    exchange=st.floats(0, 1e-3), tp=st.sampled_from([1, 2]),
)  # fmt: skip
def test_calibration_finds_the_hardware_again(
    flops: float, bandwidth: float, link: float, exchange: float, tp: int
) -> None:
    hardware = Hardware(flops=flops, bandwidth=bandwidth, link_bandwidth=link, exchange_s=exchange)
    model = analytic_cost_model(LLAMA2_7B, hardware, 2, tp)
    prefill = BatchShape(num_instances=1, chunks=(Chunk(16_000),))
    decodes = [BatchShape(num_instances=n, num_requests=1, context_tokens=0, num_masters=1) for n in (1, 2)]
    timed = [Timed(shape, shape.predict(model)) for shape in (prefill, *decodes)]
    found = analytic_cost_model(
        LLAMA2_7B, calibrated_hardware(LLAMA2_7B, [*timed, Timed(100, model.migration(100))], tp), 2, tp
    )
    # What a decoding request computes counts as reading: little, unless a machine computes as slowly as it reads.
    tolerance = 0.02 + (flops < 100 * bandwidth)
    assert found.prefill([Chunk(20_000)], 2) == pytest.approx(model.prefill([Chunk(20_000)], 2), rel=tolerance)
    assert found.decode(1, 0, 1, 1) == pytest.approx(model.decode(1, 0, 1, 1), rel=tolerance)
    assert found.migration(5000) == pytest.approx(model.migration(5000), rel=1e-6)


@given(
    flops=st.floats(1e12, 1e15), bandwidth=st.floats(1e10, 1e13), chunk_s=st.floats(0.0, 0.1),
    slowed=st.floats(1.0, 9.0),
)  # fmt: skip
def test_calibration_tells_what_a_chunk_costs_whatever_its_length(
    flops: float, bandwidth: float, chunk_s: float, slowed: float
) -> None:
    """From a short prefill and a long one; where one ran several times, the machine was once busy with other things."""
    hardware = Hardware(flops=flops, bandwidth=bandwidth, link_bandwidth=1e9, chunk_s=chunk_s)
    model = analytic_cost_model(LLAMA2_7B, hardware, 1)
    short, long = (BatchShape(num_instances=1, chunks=(Chunk(length),)) for length in (16, 16_000))
    decode = BatchShape(num_instances=1, num_requests=1, context_tokens=0, num_masters=1)
    timed = [Timed(shape, shape.predict(model)) for shape in (short, long, decode)]
    timed += [Timed(shape, slowed * shape.predict(model)) for shape in (short, decode)]
    found = analytic_cost_model(LLAMA2_7B, calibrated_hardware(LLAMA2_7B, timed), 1)
    computing_s = model.decode(2, 0, 1, 1) - model.decode(1, 0, 1, 1)  # of a decoding request: it counts as reading
    for chunks in ([], [Chunk(4000)]):
        if long.predict(model) >= 2.1 * short.predict(model):
            tolerance_s = 2.0 * computing_s + 1e-3 * model.prefill(chunks, 1)
            assert found.prefill(chunks, 1) == pytest.approx(model.prefill(chunks, 1), abs=tolerance_s)
    assert found.decode(1, 0, 1, 1) == pytest.approx(model.decode(1, 0, 1, 1), abs=2.0 * computing_s)


@pytest.mark.parametrize("seconds", [(0.001, 0.1), (0.1, 0.001)])
def test_of_several_migrations_the_fastest_counts(seconds: tuple[float, float]) -> None:
    decode = BatchShape(num_instances=1, num_requests=1, context_tokens=0, num_masters=1)
    prefill = BatchShape(num_instances=1, chunks=(Chunk(1000),))
    timed = [Timed(prefill, 1.0), Timed(decode, 0.01), *(Timed(256, each) for each in seconds)]
    found = calibrated_hardware(LLAMA2_7B, timed)
    assert found.link_bandwidth == pytest.approx(256 * LLAMA2_7B.kv_bytes_per_token / 0.001)
