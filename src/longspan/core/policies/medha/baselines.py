"""Medha's baselines: the same frame, with one thing changed."""

from __future__ import annotations

from dataclasses import dataclass

from longspan.config import check_count
from longspan.core.policies.chunked.adaptive import AdaptiveChunks
from longspan.core.policies.chunked.policy import ChunkedPrefill
from longspan.core.policies.chunked.predictor import Predictor
from longspan.core.policies.chunked.priority import (
    N,
    Standing,
    earliest_deadline,
    first_come,
    least_slack,
    shortest_remaining,
)
from longspan.core.policies.medha.token_budget import TokenBudget
from longspan.core.state import SchedulerState


class Sarathi(ChunkedPrefill):
    """Sarathi-Serve: batches of a fixed number of tokens, decodes first, then prompts first come first served."""

    @dataclass(frozen=True)
    class Options(ChunkedPrefill.Options):
        """chunk_size: tokens in a batch, of prompts and decodes together."""

        chunk_size: int = 512

        def __post_init__(self) -> None:
            super().__post_init__()
            check_count("chunk_size", self.chunk_size)

    name = "sarathi"
    makes_room = False
    options: Options

    def rule(self, standing: Standing[N]) -> N:
        return first_come(standing)

    def predictor(self, state: SchedulerState) -> Predictor:
        return TokenBudget(state.config, self.options.chunk_size, self.options.kvp_tokens_per_shard)


class Fcfs(AdaptiveChunks):
    """Adaptive chunks, first come first served."""

    name = "fcfs"

    def rule(self, standing: Standing[N]) -> N:
        return first_come(standing)


class Edf(AdaptiveChunks):
    """Adaptive chunks, earliest deadline first."""

    name = "edf"

    def rule(self, standing: Standing[N]) -> N:
        return earliest_deadline(standing)


class Srpt(AdaptiveChunks):
    """Adaptive chunks, shortest remaining prefill first. Long prompts starve under an endless stream of short ones."""

    name = "srpt"

    def rule(self, standing: Standing[N]) -> N:
        return shortest_remaining(standing)


class LeastSlack(AdaptiveChunks):
    """Adaptive chunks, least slack in seconds first, however long a prompt is."""

    name = "least_slack"

    def rule(self, standing: Standing[N]) -> N:
        return least_slack(standing)
