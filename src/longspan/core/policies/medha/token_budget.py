"""Iterations of so many tokens, whatever they cost (Sarathi-Serve): a predictor that counts instead."""

from __future__ import annotations

from collections.abc import Iterable

from longspan.config import SchedulerConfig
from longspan.core.actions import RunBatch
from longspan.core.costs.cost_model import Chunk
from longspan.core.policies.chunked.predictor import Predictor


class TokenCount:
    """A cost model that counts tokens instead of seconds: what policies with fixed chunks go by."""

    def prefill(self, chunks: Iterable[Chunk], num_instances: int) -> float:
        return float(sum(length for length, _ in chunks))

    def work(self, length: int, context: int, num_instances: int) -> float:
        return float(length)

    def decode(self, num_requests: int, context_tokens: int, num_instances: int, num_masters: int) -> float:
        return float(num_requests)

    def mixed(self, chunks: Iterable[Chunk], num_requests: int, context_tokens: int, num_instances: int) -> float:
        return self.prefill(chunks, num_instances) + num_requests

    def iteration(self, work_s: float, num_requests: int, context_tokens: int, num_instances: int) -> float:
        return work_s + num_requests

    def migration(self, num_tokens: int) -> float:
        return float(num_tokens)


class TokenBudget(Predictor):
    """Sarathi-Serve's: an iteration takes so many tokens, whatever they cost."""

    def __init__(self, config: SchedulerConfig, chunk_size: int, kvp_tokens_per_shard: int | None = None) -> None:
        self.chunk_size = chunk_size
        super().__init__(TokenCount(), config, kvp_tokens_per_shard=kvp_tokens_per_shard)

    def target(self, tightest_gap_s: float | None = None, scale: float = 1.0) -> float:
        return float(self.chunk_size)

    def wait(self, running: RunBatch, alike: int, decodes: int, context: int, now: float) -> float:
        """Return an iteration's tokens: how long anything takes it does not know."""
        return self.target()
