"""Dynamic chunking: an iteration may take as long as its decodes have until their next tokens are due (QoServe)."""

from __future__ import annotations

import math

from longspan.config import SchedulerConfig
from longspan.core.books.request import Request
from longspan.core.costs.cost_model import Chunk, CostModel
from longspan.core.news import News
from longspan.core.policies.chunked.predictor import Predictor
from longspan.core.policies.rivals.served import prefill_seconds

_SHORTEST_S = 1e-9
_RATE_GAIN = 0.005


class SlackPredictor(Predictor):
    """A predictor whose iterations are bounded by the slack of their decodes, and by the largest chunk worth its while.

    Token n of a request is due at arrival + TTFT SLO + (n - 1) TBT SLO (equation 2). A first token that was early
    leaves time to long chunks, therefore. One that was late moves the others with it (the code's `_get_TBT_deadline`).

    rate: seconds of prefill, as predicted alone, that a second of an iteration with chunks does, as a slow running
    average (the code's `expected_prefill_throughput`).
    """

    longest_s = math.inf  # as long as it is being made

    def __init__(
        self, model: CostModel, config: SchedulerConfig, *, largest_chunk: int, spends_early_tokens: bool,
        max_fixed_share: float, idle_fixed_share: float, kvp_tokens_per_shard: int | None, aim: float, gain: float,
    ) -> None:  # fmt: skip
        """Make one. largest_chunk: tokens; an iteration takes no longer than they do without context, unless fixed
        costs would have more than their idle share of that. spends_early_tokens: whether decodes that are ahead of
        their deadlines leave an iteration more time than from token to token. The others: see `Predictor`."""
        super().__init__(
            model, config, max_fixed_share=max_fixed_share, kvp_tokens_per_shard=kvp_tokens_per_shard, aim=aim,
            gain=gain,
        )  # fmt: skip
        fixed_s = model.prefill((), 1)
        self.spends_early_tokens = spends_early_tokens and config.pp == 1
        saturated_s = model.prefill((Chunk(largest_chunk),), 1)
        self.longest_s = max(saturated_s, fixed_s / max_fixed_share, fixed_s / idle_fixed_share)
        self.idle_target = self._default = self.longest_s
        self.now = 0.0
        self.rate = 1.0
        self._began: dict[int, float] = {}
        self._first_token_at: dict[str, float] = {}  # of the living; 0: it has none yet

    def target(self, tightest_gap_s: float | None = None, scale: float = 1.0) -> float:
        if tightest_gap_s is None and self.longest_s < math.inf:
            return self.longest_s / scale
        return min(super().target(tightest_gap_s, scale), self.longest_s / scale)

    def tpot(self, request: Request) -> float:
        """Return the seconds until the request's next token is due, instead of those from token to token.

        In a pipeline no more than these: chunks that follow behind later stages would use the same slack again.
        """
        pace_s = super().tpot(request)
        due = max(request.arrived + self.deadline(request), self._first_token_at[request.id])
        slack_s = max(_SHORTEST_S, due + request.num_output_tokens * pace_s - self.now)
        return slack_s if self.spends_early_tokens else min(slack_s, pace_s)

    def begin(self, first_batch: int, batches: int) -> None:
        """Note that batches of these numbers begin now."""
        self._began.update(dict.fromkeys(range(first_batch, first_batch + batches), self.now))

    def follow(self, news: News, now: float) -> None:
        """Learn what has run, and what the time is."""
        self.now = now
        self._first_token_at.update(dict.fromkeys([request.id for request in news.arrived], 0.0))
        for batch in news.completed:
            began, done_s = self._began.pop(batch.batch_id, now), prefill_seconds(self, batch)
            if done_s and now > began:
                self.rate += _RATE_GAIN * (done_s * self.config.pp / (now - began) - self.rate)
            for segment in batch.segments:
                if segment.emits and self._first_token_at.get(segment.request_id) == 0.0:
                    self._first_token_at[segment.request_id] = now
        for request in news.ended:
            self._first_token_at.pop(request.id, None)
