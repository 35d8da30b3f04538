"""A part of the pool is closed to large prompts, so that small ones find room beside them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan.core.policies import create_policy
from longspan.errors import ConfigError
from longspan.service_level import ServiceLevel

from .longspan import Arrival, Run, arrival, plain, played

CLOSED = "longspan:closed_to_long=0.25"
KV_TOKENS = 4000
SERVED = ServiceLevel(if_late="serve")


def held_by(run: Run, beyond: int) -> int:
    """The most KV tokens that prompts of more tokens than that ever held together, from what was run and freed."""
    prompts = {event.request_id: event.num_prompt_tokens for _, event, _ in run.steps if hasattr(event, "max_tokens")}
    held: dict[str, int] = {}
    most = 0
    for _, _, actions in run.steps:
        for action in actions:
            for segment in getattr(action, "segments", ()):
                held[segment.request_id] = held.get(segment.request_id, 0) + segment.length
            if type(action).__name__ == "StopRequest":
                held.pop(action.request_id, None)
        most = max(most, sum(tokens for name, tokens in held.items() if prompts[name] > beyond))
    return most


def longs_that_decode() -> list[Arrival]:
    """They fill the pool, and hold it for 60 tokens each; a quarter of it is long."""
    return [arrival(0.0, f"long{n}", 1010, 60, SERVED) for n in range(4)]


@pytest.mark.parametrize("policy", ["longspan", CLOSED])
def test_small_ones_find_room_beside_large_ones_that_generate(policy: str) -> None:
    shorts = [arrival(5.0 + 0.01 * n, f"short{n}", 200, 1, SERVED) for n in range(3)]
    run = played([*longs_that_decode(), *shorts], plain(), policy=policy, kv_tokens=KV_TOKENS, decode_headroom=0)
    assert all(found.ended for found in run.played.values())
    assert (held_by(run, 1000) <= 3000) == (policy == CLOSED)


def test_one_that_alone_needs_more_than_is_open_gets_it() -> None:
    arrivals = [arrival(0.0, "before", 1500, 5, SERVED), arrival(0.1, "large", 3900, 50, SERVED)]
    run = played(arrivals, plain(), policy=CLOSED, kv_tokens=KV_TOKENS)
    assert run.played["large"].ended
    assert run.played["large"].token_times[0] > run.played["before"].token_times[-1]


LENGTHS = st.lists(st.tuples(st.floats(0, 8), st.integers(1, 3900), st.integers(1, 60)), min_size=1, max_size=14)


@settings(max_examples=30, deadline=None)
@given(LENGTHS, st.sampled_from([0.0, 0.05, 0.5]), st.sampled_from([0.0, 0.15, 0.5]), st.integers(1, 2))
def test_everybody_comes_to_an_end(drawn: list[tuple[float, int, int]], medium: float, long: float, n: int) -> None:
    """And large ones hold no more together than is open to them, unless it is one alone."""
    arrivals = [arrival(at, f"r{i}", prompt, more, SERVED) for i, (at, prompt, more) in enumerate(sorted(drawn))]
    policy = f"longspan:closed_to_medium={medium}:closed_to_long={long}"
    run = played(arrivals, plain(n), policy=policy, num_instances=n, kv_tokens=KV_TOKENS // n, decode_headroom=60)
    assert all(found.ended for found in run.played.values())
    for beyond, closed in ((250, medium), (1000, long)):
        largest = max([prompt + more for _, prompt, more in drawn if prompt > beyond], default=0)
        assert held_by(run, beyond) <= max(largest, (1.0 - closed) * KV_TOKENS)


def test_it_is_so_by_default_where_there_are_several_instances() -> None:
    shorts = [arrival(5.0 + 0.01 * n, f"short{n}", 200, 1, SERVED) for n in range(3)]
    for num_instances, most in ((1, KV_TOKENS), (2, 0.85 * KV_TOKENS)):
        run = played(
            [*longs_that_decode(), *shorts], plain(2), num_instances=num_instances,
            kv_tokens=KV_TOKENS // num_instances, decode_headroom=60,
        )  # fmt: skip
        assert 0.75 * most < held_by(run, 1000) <= most


@pytest.mark.parametrize("option", ["closed_to_medium", "closed_to_long"])
def test_shares_that_cannot_be(option: str) -> None:
    for value in (-0.1, 0.6, float("nan")):
        with pytest.raises(ConfigError, match=f"{option} is {value}, but must be 0 to 0.5"):
            create_policy("longspan", {option: value})
