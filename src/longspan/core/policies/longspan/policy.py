"""The default policy."""

from __future__ import annotations

from dataclasses import dataclass, replace

from longspan.core.books.request import Request
from longspan.core.news import News
from longspan.core.policies.chunked.policy import AdaptiveChunks
from longspan.core.policies.chunked.priority import N, Standing
from longspan.core.policies.longspan.order import SharedProcessor, rank
from longspan.core.state import SchedulerState
from longspan.errors import ConfigError


class Longspan(AdaptiveChunks):
    """Feasible requests by deadline and remaining work, in chunks sized in time, corrected by what iterations took."""

    @dataclass(frozen=True)
    class Options(AdaptiveChunks.Options):
        """c: weight of a prompt's remaining seconds beside its deadline: 0 is earliest deadline first, much is shortest
        remaining first."""

        c: float = 2.0
        max_fixed_share: float = 0.5
        idle_fixed_share: float = 0.05
        aim: float = 0.88
        feedback: float = 0.1

        def __post_init__(self) -> None:
            super().__post_init__()
            if not 0.0 <= self.c <= 1e6:
                raise ConfigError(f"c is {self.c}, but must be at least 0, and 1000000 at most")

    name = "longspan"
    options: Options

    def __init__(self, **options: object) -> None:
        super().__init__(**options)
        self._sharing = SharedProcessor()
        self._scale = 1.0
        self._wait_s = 0.0

    def observe(self, state: SchedulerState, news: News, now: float) -> None:
        super().observe(state, news, now)
        predictor = self._predictor(state)
        self._scale = predictor.feedback.scale("mixed")
        self._wait_s = predictor.target(state.config.tpot_slo_s) / state.config.pp
        self._sharing.advance(now)
        for batch in news.completed:
            self._sharing.serve(segment.request_id for segment in batch.segments if segment.emits)
        for request in news.arrived:
            self._sharing.arrive(request, predictor.whole_prefill(request.num_tokens))
        for request in news.ended:
            self._sharing.end(request)

    def standing(self, state: SchedulerState, request: Request, now: float) -> Standing[float]:
        return replace(super().standing(state, request, now), tag=self._sharing.tag(request))

    def rule(self, standing: Standing[N]) -> N:
        return rank(standing, self.options.c, self._scale, self._wait_s)
