"""Medha's baselines: the same frame, with one thing changed."""

from __future__ import annotations

from longspan.core.policies.medha.policy import ChunkedPrefill
from longspan.core.policies.medha.predictor import Predictor, TokenBudget
from longspan.core.policies.medha.priority import (
    N,
    Standing,
    earliest_deadline,
    first_come,
    least_slack,
    shortest_remaining,
)
from longspan.core.state import SchedulerState


class Sarathi(ChunkedPrefill):
    """Sarathi-Serve: batches of a fixed number of tokens, decodes first, then prompts first come first served."""

    name = "sarathi"
    needs_cost_model = False
    makes_room = False

    def rule(self, standing: Standing[N]) -> N:
        return first_come(standing)

    def predictor(self, state: SchedulerState) -> Predictor:
        return TokenBudget(state.config)


class Fcfs(ChunkedPrefill):
    """Adaptive chunks, first come first served."""

    name = "fcfs"

    def rule(self, standing: Standing[N]) -> N:
        return first_come(standing)


class Edf(ChunkedPrefill):
    """Adaptive chunks, earliest deadline first."""

    name = "edf"

    def rule(self, standing: Standing[N]) -> N:
        return earliest_deadline(standing)


class Srpt(ChunkedPrefill):
    """Adaptive chunks, shortest remaining prefill first. Long prompts starve under an endless stream of short ones."""

    name = "srpt"

    def rule(self, standing: Standing[N]) -> N:
        return shortest_remaining(standing)


class LeastSlack(ChunkedPrefill):
    """Adaptive chunks, least slack in seconds first, however long a prompt is."""

    name = "least_slack"

    def rule(self, standing: Standing[N]) -> N:
        return least_slack(standing)
