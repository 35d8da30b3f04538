from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longspan.errors import ConfigError
from longspan.workload import transforms
from longspan.workload.traces import BLOCK_TOKENS, TraceRequest

LENGTHS = st.builds(TraceRequest, st.none(), st.integers(1, 10**6), st.integers(1, 10**4))
REQUESTS = st.lists(LENGTHS, min_size=1, max_size=20)
LIMITS = st.integers(2, 10**5)


@given(requests=REQUESTS, limit=LIMITS)
def test_scaled_keeps_proportions_and_fits(requests: list[TraceRequest], limit: int) -> None:
    scaled = transforms.scaled_to(requests, limit)
    longest = max(r.num_tokens for r in requests)
    assert all(r.num_tokens <= limit and min(r.num_prompt_tokens, r.num_output_tokens) >= 1 for r in scaled)
    factor = min(1.0, limit / longest)
    for before, after in zip(requests, scaled, strict=True):
        assert abs(after.num_prompt_tokens - before.num_prompt_tokens * factor) <= 1
        assert abs(after.num_output_tokens - before.num_output_tokens * factor) <= 1


@given(requests=REQUESTS, limit=LIMITS)
def test_scaled_prompts_keep_outputs(requests: list[TraceRequest], limit: int) -> None:
    longest = max(r.num_prompt_tokens for r in requests)
    factor = min(1.0, limit / longest)
    for before, after in zip(requests, transforms.prompts_scaled_to(requests, limit), strict=True):
        assert 1 <= after.num_prompt_tokens <= limit
        assert abs(after.num_prompt_tokens - before.num_prompt_tokens * factor) <= 1
        assert after.num_output_tokens == before.num_output_tokens


@given(requests=REQUESTS, limit=LIMITS)
def test_clipped_changes_only_what_is_too_long(requests: list[TraceRequest], limit: int) -> None:
    for before, after in zip(requests, transforms.clipped_to(requests, limit), strict=True):
        assert after.num_tokens == min(before.num_tokens, limit)
        assert after.num_output_tokens == min(before.num_output_tokens, limit - 1)
        assert after.num_prompt_tokens >= 1


def chat(*turns: int) -> list[TraceRequest]:
    """Each turn's prompt begins with the one before it, in whole blocks."""
    return [TraceRequest(None, blocks * BLOCK_TOKENS, 1, tuple(range(blocks))) for blocks in turns]


@given(turns=st.lists(st.integers(1, 60), min_size=2, max_size=6).map(sorted), limit=st.integers(600, 20_000))
def test_scaled_prompts_share_the_scaled_prefix(turns: list[int], limit: int) -> None:
    requests = [*chat(*turns), TraceRequest(None, turns[-1] * BLOCK_TOKENS, 1, tuple(range(1000, 1000 + turns[-1])))]
    scaled = transforms.scaled_to(requests, limit)
    for r in scaled:
        assert len(r.prefix_block_ids) == math.ceil(r.num_prompt_tokens / BLOCK_TOKENS)
    *_, before_last, last, stranger = scaled
    whole = before_last.num_prompt_tokens // BLOCK_TOKENS
    assert before_last.prefix_block_ids[:whole] == last.prefix_block_ids[:whole]
    assert not set(last.prefix_block_ids) & set(stranger.prefix_block_ids)


def test_a_shared_part_does_not_grow_by_scaling() -> None:
    """Two prompts of 8 blocks share 2 of them, 1024 tokens: at half the size, 512, which is one block."""
    one = TraceRequest(None, 8 * BLOCK_TOKENS, 8, (0, 1, 2, 3, 4, 5, 6, 7))
    other = TraceRequest(None, 8 * BLOCK_TOKENS, 8, (0, 1, 12, 13, 14, 15, 16, 17))
    a, b = transforms.scaled_to([one, other], one.num_tokens // 2)
    assert len(a.prefix_block_ids) == len(b.prefix_block_ids) == 4
    assert a.prefix_block_ids[:1] == b.prefix_block_ids[:1]
    assert not set(a.prefix_block_ids[1:]) & set(b.prefix_block_ids[1:])


def test_clipping_drops_the_blocks_that_are_cut() -> None:
    (request,) = transforms.clipped_to(chat(4), 2 * BLOCK_TOKENS + 1)
    assert request == TraceRequest(None, 2 * BLOCK_TOKENS, 1, (0, 1))


def at(*times: float) -> list[TraceRequest]:
    return [TraceRequest(time, 1, 1) for time in times]


def test_first_seconds() -> None:
    assert list(transforms.first_seconds(at(0, 1, 2, 3), 2)) == at(0, 1)
    with pytest.raises(ConfigError, match="no arrivals"):
        list(transforms.first_seconds([TraceRequest(None, 1, 1)], 2))


def test_at_rate_stretches_time() -> None:
    assert transforms.at_rate(at(0, 1, 1, 3), 0.5) == at(0, 2, 2, 6)
    assert transforms.at_rate(at(0, 0), 0.5) == at(0, 0)


def test_arrivals_are_given_until_either_ends() -> None:
    lengths = [TraceRequest(None, n, 1) for n in (1, 2, 3)]
    assert list(transforms.with_arrivals(lengths, [0.5, 0.75])) == [TraceRequest(0.5, 1, 1), TraceRequest(0.75, 2, 1)]


def test_a_limit_that_holds_no_request() -> None:
    for fit in (transforms.clipped_to, transforms.scaled_to, transforms.prompts_scaled_to):
        with pytest.raises(ConfigError, match="at least 2"):
            list(fit(at(0), 1))
