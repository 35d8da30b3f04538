from __future__ import annotations

import math
import statistics
from itertools import islice

import pytest

from longspan.errors import ConfigError
from longspan.workload import generator
from longspan.workload.traces import TraceRequest, read_trace
from longspan.workload.transforms import first_seconds
from tests.conftest import DATA


def test_mixed_is_shorts_with_a_long_one_at_regular_times() -> None:
    requests = list(first_seconds(generator.mixed_long_short(seed=5), 600))
    times = [r.arrived_at_s for r in requests]
    longs = [r for r in requests if r.num_prompt_tokens == 7500]
    shorts = [r for r in requests if r.num_prompt_tokens < 7500]
    assert times == sorted(times)
    assert [r.arrived_at_s for r in longs] == [15.0 + 30.0 * n for n in range(20)]
    assert 0.35 * 600 < len(shorts) < 0.65 * 600  # five standard deviations around 0.5 a second
    assert all(128 <= r.num_prompt_tokens <= 384 for r in shorts)
    assert {r.num_output_tokens for r in requests} == {32}
    assert requests == list(first_seconds(generator.mixed_long_short(seed=5), 600))
    slower = first_seconds(generator.mixed_long_short(seed=5, short_rate=0.25), 1200)
    assert [r.arrived_at_s for r in slower if r.num_prompt_tokens == 7500] == [30.0 + 60.0 * n for n in range(20)]


def test_medha_mix_is_few_long_requests_and_most_tokens() -> None:
    requests = list(islice(generator.medha_mix(2.0, seed=1), 20_000))
    longs = [r for r in requests if r.num_prompt_tokens >= 131_072]
    shorts = [r for r in requests if r.num_prompt_tokens < 131_072]
    assert len(longs) / len(requests) == pytest.approx(0.05, abs=0.006)
    assert sum(r.num_prompt_tokens for r in longs) / sum(r.num_prompt_tokens for r in requests) > 0.93
    assert max(r.num_prompt_tokens for r in longs) <= 1_048_576
    # Log-uniform: as many below the middle of the logarithms as above.
    middle = math.sqrt(131_072 * 1_048_576)
    assert sum(r.num_prompt_tokens < middle for r in longs) / len(longs) == pytest.approx(0.5, abs=0.08)
    assert all(32 <= r.num_output_tokens <= 1024 for r in longs)
    assert all(16 <= r.num_prompt_tokens <= 8192 and 1 <= r.num_output_tokens <= 1000 for r in shorts)
    assert statistics.median(r.num_prompt_tokens for r in shorts) == pytest.approx(math.exp(6.633), rel=0.06)
    assert requests[-1].arrived_at_s == pytest.approx(10_000, rel=0.05)


def test_medha_mix_draws_whole_rows_of_a_trace() -> None:
    trace = read_trace(DATA / "azure_conv_2023_200.csv.gz")
    rows = {(r.num_prompt_tokens, r.num_output_tokens) for r in trace}
    drawn = islice(generator.medha_mix(1.0, seed=2, long_share=0.0, shorts=trace), 500)
    assert {(r.num_prompt_tokens, r.num_output_tokens) for r in drawn} <= rows


def test_zipf_snaps_to_the_pool_and_follows_its_exponent() -> None:
    every_length = [TraceRequest(None, n, 1) for n in range(10, 200_000)]
    for exponent in (1.0, 1.4):
        drawn = list(islice(generator.loongserve_zipf(every_length, exponent, seed=0), 20_000))
        share = sum(r.num_prompt_tokens < 1000 for r in drawn) / len(drawn)
        weights = [x**-exponent for x in range(10, 200_000)]
        assert share == pytest.approx(sum(weights[:990]) / sum(weights), abs=0.02)
    pool = [TraceRequest(None, 100, 1), TraceRequest(None, 100, 2), TraceRequest(None, 100_000, 3)]
    drawn = list(islice(generator.loongserve_zipf(pool, 1.2, seed=0), 500))
    assert {(r.num_prompt_tokens, r.num_output_tokens) for r in drawn} == {(100, 1), (100, 2), (100_000, 3)}


def test_lengths_without_arrivals() -> None:
    assert set(islice(generator.fixed_lengths(9, 4), 5)) == {TraceRequest(None, 9, 4)}
    drawn = list(islice(generator.uniform_lengths((3, 5), (1, 2), seed=0), 300))
    assert {(r.num_prompt_tokens, r.num_output_tokens) for r in drawn} == {
        (prompt, output) for prompt in (3, 4, 5) for output in (1, 2)
    }


def test_impossible_settings() -> None:
    with pytest.raises(ConfigError, match="pool"):
        generator.loongserve_zipf([], 1.2, seed=0)
    with pytest.raises(ConfigError, match="prompt lengths"):
        generator.uniform_lengths((0, 5), (1, 1), seed=0)
    with pytest.raises(ConfigError, match="long_share"):
        generator.medha_mix(1.0, 0, long_share=2.0)
