"""SSJF: speculative shortest job first (arXiv 2404.08509), without preemption."""

from __future__ import annotations

from dataclasses import dataclass

from longspan.config import check_seconds
from longspan.core.books.request import Request
from longspan.core.decision import Decision
from longspan.core.policies.parts.lanes import Lane, Rank
from longspan.core.policies.speculative.lengths import LearnedLengths
from longspan.core.policies.vllm import Vllm
from longspan.core.state import SchedulerState


class Speculative(Vllm):
    """A frame: `vllm`'s batches and memory, with predicted output lengths to rank by."""

    def __init__(self, **options: object) -> None:
        super().__init__(**options)
        self.lengths = LearnedLengths()

    def let_go(self, request: Request) -> None:
        super().let_go(request)
        if request.end_reason == "finished":
            self.lengths.learn(request)


class Ssjf(Speculative):
    """Waiting requests are admitted in order of predicted output tokens; once admitted, they run to their end.

    As in the paper nothing else changes: batches and memory are `vllm`'s. A prediction is made when the wait begins.
    No request starves: one that has waited for `starvation_s` goes before all predictions, the oldest first.
    """

    @dataclass(frozen=True)
    class Options(Speculative.Options):
        """starvation_s: who has waited for so many seconds goes first (as in the released code,
        model-serving/util.py)."""

        starvation_s: float = 100.0

        def __post_init__(self) -> None:
            super().__post_init__()
            check_seconds("starvation_s", self.starvation_s, may_be_0=True)

    name = "ssjf"
    options: Options

    def rank(self, state: SchedulerState, request: Request, now: float) -> Rank:
        tokens = float(self.lengths.left(request))
        state.explain(Decision("predict", (request.id,), predicted={"output_tokens": tokens}))
        return (tokens,)

    def first(self, lane: Lane, now: float) -> Request:
        oldest = lane.by_arrival.first
        return oldest if now - oldest.arrived >= self.options.starvation_s else lane.first
