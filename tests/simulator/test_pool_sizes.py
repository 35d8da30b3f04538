"""What pools of other sizes find, beside a plain list of what was used last."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from longspan.simulator.pool_sizes import PoolSizes
from longspan.workload.traces import BLOCK_TOKENS, TraceRequest


def found(requests: list[TraceRequest], most_blocks: int, prefix_block: int) -> int:
    """Tokens of blocks that are in a list of the last ones used, when their request comes; as prefixes have them."""
    kept: list[int] = []
    tokens = 0
    for request in requests:
        for place, block in enumerate(request.prefix_block_ids):
            end = min(BLOCK_TOKENS * (place + 1), request.num_prompt_tokens - 1)
            ends = [each for each in range(BLOCK_TOKENS * place + 1, end + 1) if each % prefix_block == 0]
            tokens += prefix_block * len(ends) * (block in kept)
        for block in reversed(request.prefix_block_ids):
            kept = [block, *[other for other in kept if other != block]]
        del kept[most_blocks:]
    return tokens


@st.composite
def prompts(draw: st.DrawFn) -> TraceRequest:
    """A talk's first blocks; those of each talk have names of their own."""
    talk, blocks = draw(st.integers(0, 3)), draw(st.integers(1, 6))
    tokens = BLOCK_TOKENS * (blocks - 1) + draw(st.sampled_from([1, 300, BLOCK_TOKENS]))
    return TraceRequest(0.0, tokens, 1, tuple(range(100 * talk, 100 * talk + blocks)))


@given(st.lists(prompts(), min_size=1, max_size=20), st.integers(1, 24), st.sampled_from([1, 16, 48, 700]))
def test_it_finds_what_a_list_of_the_last_ones_used_has(
    requests: list[TraceRequest], blocks: int, prefix_block: int
) -> None:
    total = sum(request.num_prompt_tokens for request in requests)
    pools = PoolSizes(requests, prefix_block)
    assert pools.hit_rate(BLOCK_TOKENS * blocks) == found(requests, blocks, prefix_block) / total
