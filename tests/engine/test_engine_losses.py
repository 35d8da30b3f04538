"""The engine among workers that are lost and come back: every answer is what it would be."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine.model_engine import Play, expected


@pytest.mark.parametrize("policy", ["elastic_fcfs", "medha", "loongserve"])
@settings(max_examples=40)
@given(seed=st.integers(0, 2**32), requests=st.integers(1, 8), rate=st.sampled_from([0.0, 0.02, 0.1, 0.3]))
def test_every_answer_is_what_it_would_be(policy: str, seed: int, requests: int, rate: float) -> None:
    play = Play(policy, seed)
    arrivals = list(range(requests))
    for _ in range(3000):
        if arrivals and play.rng.random() < 0.3:
            play.arrive(arrivals.pop())
        moved = play.step()
        if play.rng.random() < rate:
            play.disturb()
        assert play.core.error is None, play.core.error
        if not moved and not arrivals:
            break
    for number in arrivals:
        play.arrive(number)
    for _ in range(2):  # one that leaves may be gone only when it is empty
        for instance in sorted(play.core.fleet.missing):
            play.return_(instance)
        while play.step():
            assert play.core.error is None, play.core.error
    assert not play.errors and play.ended == play.got.keys()
    for name, tokens in play.got.items():
        assert tokens == expected(int(name[1:]), len(tokens))
    assert not play.core.in_flight and not play.core.dispatch.emitters and not play.core.requests
    assert not any(worker.held or worker.sampling for worker in play.executor.workers if worker is not None)
