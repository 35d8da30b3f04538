"""SSJF: speculative shortest job first (arXiv 2404.08509), without preemption."""

from __future__ import annotations

from longspan.core.books.request import Request
from longspan.core.decision import Decision
from longspan.core.policies.parts.lanes import Lane, Rank
from longspan.core.policies.speculative.lengths import LearnedLengths
from longspan.core.policies.vllm import TOKEN_BUDGET, Vllm
from longspan.core.state import SchedulerState

STARVATION_S = 100.0
"""As in the released code (model-serving/util.py)."""


class Ssjf(Vllm):
    """Who waits is admitted in order of predicted output tokens; once admitted, it runs to its end.

    As in the paper nothing else changes: batches and memory are `vllm`'s. A prediction is made when the wait begins.
    Nobody starves: one that has waited for `starvation_s` goes before all predictions, the oldest first.
    """

    name = "ssjf"

    def __init__(self, token_budget: int = TOKEN_BUDGET, starvation_s: float = STARVATION_S) -> None:
        super().__init__(token_budget)
        self.starvation_s = starvation_s
        self.lengths = LearnedLengths()

    def let_go(self, request: Request) -> None:
        super().let_go(request)
        if request.end_reason == "finished":
            self.lengths.learn(request)

    def rank(self, state: SchedulerState, request: Request, now: float) -> Rank:
        tokens = float(self.lengths.left(request))
        state.explain(Decision("predict", (request.id,), predicted={"output_tokens": tokens}))
        return (tokens,)

    def first(self, lane: Lane, now: float) -> Request:
        oldest = lane.by_arrival.first
        return oldest if now - oldest.arrived >= self.starvation_s else lane.first
