"""Dynamic SplitFuse as LightLLM has it (server/router/.../splitfuse): prompts in pieces, side by side.

DeepSpeed-FastGen's idea (arXiv 2401.08671) is a batch of a fixed size: all decodes, and the rest filled exactly with
pieces of prompts. In LightLLM each prompt that runs brings a piece of up to `splitfuse_block_size` tokens, as long as
the batch is below `batch_max_tokens`.
"""

from __future__ import annotations

from dataclasses import dataclass

from longspan.config import check_count
from longspan.core.books.cluster import Instance
from longspan.core.books.request import Request
from longspan.core.policies.parts.lanes import Lane
from longspan.core.policies.parts.predictions import peak_kv
from longspan.core.policies.vllm import FilledBatches
from longspan.core.state import SchedulerState


class SplitFuse(FilledBatches):
    """`chunk_size` tokens of each prompt in a batch of `max_batch_tokens`; the last piece is cut, to fill it exactly.

    Beside `sarathi`, whose batch has `chunk_size` tokens in all: prompts advance together, not one after the other. So
    a short one ends before a long one that began earlier, and an iteration takes longer, the more of them there are.

    A request is admitted if the pool has room for all that run at the time when most of it is taken, should each
    generate all that it may: LightLLM's estimate. Prompts that take several iterations can prove it too low; then the
    latest arrival is paused, and computed again.
    """

    @dataclass(frozen=True)
    class Options(FilledBatches.Options):
        """chunk_size: tokens of each prompt in a batch, at most."""

        chunk_size: int = 512

        def __post_init__(self) -> None:
            check_count("chunk_size", self.chunk_size)

    name = "splitfuse"
    options: Options

    def budget(self, state: SchedulerState) -> int:
        return state.config.max_batch_tokens

    def piece(self, state: SchedulerState) -> int:
        return self.options.chunk_size

    def may_start(
        self, state: SchedulerState, instance: Instance, lane: Lane, request: Request, taken: int = 0
    ) -> bool:
        if not super().may_start(state, instance, lane, request, taken):
            return False
        growths = [_growth(other) for other in (*lane.running.values(), request)]
        return peak_kv(growths) <= instance.capacity


def _growth(request: Request) -> tuple[int, int]:
    """Tokens that need KV now, and those of KV to come at most."""
    return request.num_tokens, request.max_kv_tokens - request.num_tokens
