"""Chunks sized in time: the frame of policies that predict how long an iteration takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from longspan.core.policies.chunked.decode import even_share
from longspan.core.policies.chunked.iteration import Iteration
from longspan.core.policies.chunked.policy import ChunkedPrefill
from longspan.core.policies.chunked.predictor import MAX_FIXED_SHARE, Predictor
from longspan.core.state import SchedulerState
from longspan.errors import ConfigError


class AdaptiveChunks(ChunkedPrefill):
    """A frame: a chunk has as many tokens as the time that its iteration may take allows."""

    @dataclass(frozen=True)
    class Options(ChunkedPrefill.Options):
        """max_fixed_share: of an iteration with a chunk, at most so much goes to what costs the same for any; a tighter
        TPOT is not kept while somebody prefills. idle_fixed_share: the same where nobody decodes, and nobody's TPOT is
        at stake; 1 makes such an iteration as long as the default TPOT. least_share: where decodes alone take longer
        than their TPOT, so much of an iteration goes to chunks at least; 0 leaves them the smallest. aim: an iteration
        is to take so much of the tightest TPOT. feedback: weight of an iteration in the averages of actual over
        predicted, by which predictions are corrected; 0 corrects none. burst: an iteration may take so many times that
        share, as long as the tokens of all its decodes are ahead of their pace; in a pipeline it never does.
        spread_decodes: in a pipeline they are shared out evenly among its batches."""

        max_fixed_share: float = MAX_FIXED_SHARE
        least_share: float = 0.0
        idle_fixed_share: float = 1.0
        aim: float = 1.0
        feedback: float = 0.0
        burst: float = 1.0
        spread_decodes: bool = False

        def __post_init__(self) -> None:
            super().__post_init__()
            if not 0.0 < self.max_fixed_share < 1.0:
                raise ConfigError(f"max_fixed_share is {self.max_fixed_share}, but must lie between 0 and 1")
            if not 0.0 <= self.least_share < 1.0:
                raise ConfigError(f"least_share is {self.least_share}, but must be at least 0 and below 1")
            for name in ("idle_fixed_share", "aim"):
                if not 0.0 < getattr(self, name) <= 1.0:
                    raise ConfigError(f"{name} is {getattr(self, name)}, but must be above 0, and 1 at most")
            if not 1.0 <= self.burst <= 100.0:
                raise ConfigError(f"burst is {self.burst}, but must be at least 1, and 100 at most")
            if not 0.0 <= self.feedback < 0.5:
                raise ConfigError(f"feedback is {self.feedback}, but must be at least 0 and below 0.5")

    needs_cost_model = True
    options: Options

    def predictor(self, state: SchedulerState) -> Predictor:
        return Predictor(state.cost_model, state.config, **self.figures())

    def most_decodes(self, state: SchedulerState, iteration: Iteration, num_ready: int) -> int:
        most = super().most_decodes(state, iteration, num_ready)
        if not self.options.spread_decodes or state.config.pp == 1:
            return most
        return min(most, even_share(state, iteration, num_ready))

    def figures(self) -> dict[str, Any]:
        """Return the options as a predictor takes them."""
        options = self.options
        return {
            "max_fixed_share": options.max_fixed_share, "kvp_tokens_per_shard": options.kvp_tokens_per_shard,
            "aim": options.aim, "idle_fixed_share": options.idle_fixed_share, "gain": options.feedback,
            "burst": options.burst, "least_share": options.least_share,
        }  # fmt: skip
