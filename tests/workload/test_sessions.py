from __future__ import annotations

import statistics
from dataclasses import replace
from itertools import islice, pairwise

import pytest

from longspan.workload.sessions import AGENTS, CHATS, Talk, sessions
from longspan.workload.traces import BLOCK_TOKENS, TraceRequest


def by_session(requests: list[TraceRequest], talk: Talk) -> list[list[TraceRequest]]:
    """A session's own blocks are those behind its beginning."""
    found: dict[int, list[TraceRequest]] = {}
    for request in requests:
        found.setdefault(request.prefix_block_ids[talk.beginning], []).append(request)
    return list(found.values())


@pytest.mark.parametrize("talk", [CHATS, AGENTS])
def test_each_turn_goes_on_from_the_one_before(talk: Talk) -> None:
    requests = list(islice(sessions(0.5, 3, talk), 3000))
    times = [request.arrived_at_s or 0.0 for request in requests]
    assert times == sorted(times)
    assert all(len(r.prefix_block_ids) == -(-r.num_prompt_tokens // BLOCK_TOKENS) for r in requests)
    assert max(request.num_tokens for request in requests) <= talk.longest
    for turns in by_session(requests, talk):
        for before, after in pairwise(turns):
            assert after.num_prompt_tokens > before.num_tokens
            assert after.prefix_block_ids[: len(before.prefix_block_ids)] == before.prefix_block_ids
            assert (after.arrived_at_s or 0.0) > (before.arrived_at_s or 0.0) + talk.token_s * before.num_output_tokens
    assert len({request.prefix_block_ids[: talk.beginning] for request in requests}) == talk.beginnings


def test_sessions_have_nothing_in_common_but_their_beginnings() -> None:
    rest = [set(turns[-1].prefix_block_ids[CHATS.beginning :])
            for turns in by_session(list(islice(sessions(1.0, 1), 2000)), CHATS)]  # fmt: skip
    assert sum(map(len, rest)) == len(set().union(*rest))


def test_they_are_as_long_as_is_said_and_the_same_for_a_seed() -> None:
    talk = replace(CHATS, turns=4.0, sigma=0.01, longest=10**9)
    requests = list(islice(sessions(2.0, 5, talk), 4000))
    assert requests == list(islice(sessions(2.0, 5, talk), 4000))
    assert requests != list(islice(sessions(2.0, 6, talk), 4000))
    ended = by_session(requests, talk)[:500]
    assert statistics.mean(map(len, ended)) == pytest.approx(talk.turns, rel=0.2)
    assert statistics.median(r.num_output_tokens for r in requests) == pytest.approx(talk.output, rel=0.02)
    first = [turns[0].num_prompt_tokens for turns in ended]
    assert statistics.median(first) == pytest.approx(BLOCK_TOKENS * talk.beginning + talk.first, rel=0.02)
