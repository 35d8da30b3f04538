"""The replay behind the bound of eviction: Belady's order is beaten by none, and LRU is what it is elsewhere."""

from __future__ import annotations

from collections import OrderedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.policy.eviction_bound import ORDERS, hit_rate
from longspan.workload.traces import BLOCK_TOKENS, TraceRequest

_LONGEST = 4  # blocks
_PATHS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=_LONGEST), min_size=2, max_size=40)
_POOLS = st.integers(_LONGEST, 12)


def _requests(paths: list[list[int]]) -> list[TraceRequest]:
    """Prompts of whole blocks and a token; a block is known by all that comes before it."""
    names: dict[tuple[int, ...], int] = {}
    requests = []
    for at, path in enumerate(paths):
        ids = [names.setdefault(tuple(path[: end + 1]), len(names)) for end in range(len(path))]
        requests.append(TraceRequest(float(at), BLOCK_TOKENS * len(path) + 1, 1, tuple(ids)))
    return requests


def _found(requests: list[TraceRequest], pool: int, name: str) -> float:
    """How many blocks."""
    tokens = sum([request.num_prompt_tokens for request in requests])
    return hit_rate(requests, pool, name) * tokens / BLOCK_TOKENS


@given(_PATHS, _POOLS)
def test_none_finds_more_than_beladys(paths: list[list[int]], pool: int) -> None:
    requests = _requests(paths)
    most = _found(requests, pool, "belady")
    assert all(_found(requests, pool, name) <= most + 1e-6 for name in ORDERS)


@given(_PATHS, _POOLS)
def test_lru_is_that_of_single_blocks_the_last_ones_of_a_prompt_first(paths: list[list[int]], pool: int) -> None:
    requests = _requests(paths)
    kept, found = OrderedDict[int, None](), 0
    for request in requests:
        found += sum([block in kept for block in request.prefix_block_ids])
        for block in reversed(request.prefix_block_ids):
            kept[block] = None
            kept.move_to_end(block)
        while len(kept) > pool:
            kept.popitem(last=False)
    assert _found(requests, pool, "lru") == pytest.approx(found)


@given(_PATHS)
def test_a_pool_that_holds_all_finds_all_that_came_before(paths: list[list[int]]) -> None:
    requests = _requests(paths)
    blocks = [block for request in requests for block in request.prefix_block_ids]
    for name in ORDERS:
        assert _found(requests, len(blocks), name) == pytest.approx(len(blocks) - len(set(blocks)))
