"""QoServe, first called Niyama (arXiv 2503.22562; code: microsoft/sarathi-serve, `deadline_scheduler.py`).

*Hybrid prioritization* (section 3.4, equation 4) serves by `arrival + SLO + alpha x remaining prefill`: earliest
deadline first at low load, shortest remaining prefill first at high load. *Eager relegation* puts who cannot be in
time behind all others. *Dynamic chunking* (section 3.3) makes chunks as large as the slack of the decodes allows
(`slack`). *Selective preemption* pauses no prompt that would miss its deadline for it.
"""

from __future__ import annotations

from dataclasses import dataclass

from longspan.config import check_count, check_seconds
from longspan.core.books.request import Request, RequestStatus
from longspan.core.news import News
from longspan.core.policies.chunked.adaptive import AdaptiveChunks
from longspan.core.policies.chunked.packing import Packer
from longspan.core.policies.chunked.predictor import Predictor
from longspan.core.policies.chunked.priority import N, Standing
from longspan.core.policies.rivals.slack import SlackPredictor
from longspan.core.state import SchedulerState
from longspan.errors import ConfigError

RELEGATED = 1e10
"""Seconds, beyond every priority of a request that is not relegated."""


class QoServe(AdaptiveChunks):
    """QoServe's three techniques in the frame of `medha`.

    It departs from the paper in this:

    - Remaining prefill is in predicted seconds, as equation 4 has it; the code's is in tokens. So alpha is a number: 8
      ms a token at the 8,500 tokens a second that the code expects is 68, the 1 ms of low loads 8.5.
    - The paper tunes alpha to the load (section 3.6), and does not say how. Here it goes in a line from the one to the
      other as the prefill that waits grows to the paper's tightest TTFT SLO, 6 s, for each instance.
    - All requests are interactive: none asks for a time to its last token, so equation 5 is left out.
    - Who has begun is not relegated, as in the code (in the paper everybody can be): its KV takes room already.
    - Priorities are strict, as in all the frame. They stand for the paper's hints as to whom to relegate first.
    - Chunks are shared out over instances, and several prompts fill one iteration, as the frame has it.

    Relegated requests starve under an endless overload, as the paper means it: they are for times of lower load. Of the
    others none does: newcomers' priorities grow with time beyond its own, or it is relegated.
    """

    @dataclass(frozen=True)
    class Options(AdaptiveChunks.Options):
        """alpha_low: weight of a prompt's remaining seconds beside its deadline, while nobody waits. alpha_high: the
        same at full load. full_load_s: full load is so many seconds of waiting prefill for each instance.
        largest_chunk: tokens; an iteration takes no longer than so many without context, where throughput saturates.
        spends_early_tokens: whether decodes that are ahead of their deadlines leave time to chunks. Their TPOT may be
        exceeded then, though no token is late.
        """

        alpha_low: float = 8.5
        alpha_high: float = 68.0
        full_load_s: float = 6.0
        largest_chunk: int = 2500
        spends_early_tokens: bool = True
        aim: float = 0.83  # the code takes predictions 1.2 times

        def __post_init__(self) -> None:
            super().__post_init__()
            for name in ("alpha_low", "alpha_high"):
                if not 0.0 <= getattr(self, name) <= 1e6:
                    raise ConfigError(f"{name} is {getattr(self, name)}, but must be at least 0, and 1000000 at most")
            check_seconds("full_load_s", self.full_load_s)
            check_count("largest_chunk", self.largest_chunk)

    name = "qoserve"
    options: Options

    def __init__(self, **options: object) -> None:
        super().__init__(**options)
        self._alpha = self.options.alpha_low
        self._relegated: set[str] = set()  # of those that have begun
        self._slack: SlackPredictor | None = None

    def predictor(self, state: SchedulerState) -> Predictor:
        options = self.options
        self._slack = SlackPredictor(
            state.cost_model, state.config, largest_chunk=options.largest_chunk,
            spends_early_tokens=options.spends_early_tokens,
            max_fixed_share=options.max_fixed_share, idle_fixed_share=options.idle_fixed_share,
            kvp_tokens_per_shard=options.kvp_tokens_per_shard, aim=options.aim, gain=options.feedback,
        )  # fmt: skip
        return self._slack

    def observe(self, state: SchedulerState, news: News, now: float) -> None:
        super().observe(state, news, now)
        assert self._slack is not None
        self._slack.follow(news, now)
        self._relegated.difference_update(request.id for request in news.ended)
        self._backlog.follow(state, lambda request: self.standing(state, request, now))
        load = min(1.0, self._backlog.total_s() / len(state.cluster) / self.options.full_load_s)
        self._alpha = self.options.alpha_low + load * (self.options.alpha_high - self.options.alpha_low)

    def rule(self, standing: Standing[N]) -> N:
        """Return the priority of one that has not begun: equation 4, behind the others if it cannot be in time."""
        is_late = self._end(standing) > standing.arrived + standing.deadline_s
        return self._priority(standing) + RELEGATED * is_late

    def _priority(self, standing: Standing[N]) -> N:
        return standing.arrived + standing.deadline_s + self._alpha * standing.remaining_s

    def _end(self, standing: Standing[N]) -> N:
        """Return when it would have its first token, went it first from now on."""
        assert self._slack is not None
        return standing.now + standing.remaining_s / self._slack.rate

    def _key(self, request: Request, standing: Standing[float]) -> tuple[float, ...]:
        if request.status is RequestStatus.WAITING:
            return super()._key(request, standing)
        assert self._slack is not None
        rank = self._priority(standing)
        if request.id in self._relegated:
            rank += RELEGATED
        elif 0.0 <= standing.slack_s < self._slack.longest_s:  # a pause of one iteration would be its undoing
            rank -= RELEGATED
        return (-request.service.priority, rank, request.arrival_index)

    def _issue(self, state: SchedulerState, packer: Packer, now: float) -> None:
        for admission in packer.admissions.admitted:
            if self.rule(self.standing(state, admission.request, now)) >= RELEGATED:
                self._relegated.add(admission.request.id)
        assert self._slack is not None
        self._slack.begin(state.num_batches, len(packer.iteration.parts()))
        super()._issue(state, packer, now)
