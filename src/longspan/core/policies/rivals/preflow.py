"""PREFLOW: the prompt whose wait costs it most in slowdown goes first (vllm-ascend pull request 16360).

The policy ranks unfinished prompts, waiting or half done, by `2^(A / D) / (P R)`, the highest first: P is a prompt's
whole prefill work, R what is left of it, and A its age (`_preflow_priority` of its `preflow_scheduler.py`). Age is no
time: each batch adds the prefill work that it did, divided by P (`_preflow_apply_batch_age`). So it is the wait as a
multiple of the prompt's own work, its slowdown, and stands still while nobody prefills.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from longspan.core.books.request import Request
from longspan.core.news import News
from longspan.core.policies.chunked.adaptive import AdaptiveChunks
from longspan.core.policies.chunked.priority import N, Standing
from longspan.core.policies.rivals.served import prefill_seconds
from longspan.core.state import SchedulerState
from longspan.errors import ConfigError


class Preflow(AdaptiveChunks):
    """PREFLOW's rank: weighted shortest remaining prefill first, with exponential ageing.

    It departs from the pull request where that is about a prefill engine of vLLM's:

    - Work is in predicted seconds, not n (n + 1) / 2 of n tokens: the two are in proportion where attention rules, and
      short prompts are not taken for nearly free.
    - Several instances serve one queue, so a prompt's age counts the work that an instance does, in the mean.
    - An iteration takes prompts in order of rank until its time is used, beside decodes. Theirs takes one prompt, or
      several that are short (`micro_prefill_isl_threshold`), for decodes are elsewhere and chunks have a fixed size.
    - A request ages, too, by batches that ran already when it came.

    While the instances keep up, nobody starves: newcomers have no age, and the rank of who waits doubles with each D
    times its own work that is done. Under lasting overload long prompts do: short ones wait as well, and age faster.
    """

    @dataclass(frozen=True)
    class Options(AdaptiveChunks.Options):
        """age_priority_double: D; a prompt's rank doubles when so many times its own work has been done since it
        came."""

        age_priority_double: float = 2.0

        def __post_init__(self) -> None:
            super().__post_init__()
            if not 1e-6 <= self.age_priority_double <= 1e6:
                raise ConfigError(
                    f"age_priority_double is {self.age_priority_double}, but must lie between 0.000001 and 1000000"
                )

    name = "preflow"
    options: Options

    def __init__(self, **options: object) -> None:
        super().__init__(**options)
        self._served_s = 0.0  # prefill work, of an instance in the mean
        self._served_before: dict[str, float] = {}

    def observe(self, state: SchedulerState, news: News, now: float) -> None:
        super().observe(state, news, now)
        predictor = self._predictor(state)
        for batch in news.completed:
            self._served_s += prefill_seconds(predictor, batch) / len(state.cluster)
        for request in news.arrived:
            self._served_before[request.id] = self._served_s
        for request in news.ended:
            self._served_before.pop(request.id, None)

    def standing(self, state: SchedulerState, request: Request, now: float) -> Standing[float]:
        """Return how a request stands. tag: its rank's logarithm, negated, but for its progress and the work done."""
        standing = super().standing(state, request, now)
        doublings_before = self._served_before[request.id] / (self.options.age_priority_double * standing.scale_s)
        return replace(standing, tag=doublings_before + 2.0 * math.log2(standing.scale_s))

    def rule(self, standing: Standing[N]) -> N:
        """Return the negated logarithm of the rank, to base 2, so that no age overflows.

        log(P R) is in the tag as if nothing was done. So what is added for the waiting is the logarithm of 1: exactly
        zero, in columns as for each alone.
        """
        left = np.maximum(standing.remaining_s, 1e-12) / np.maximum(standing.total_s, 1e-12)
        progress: N = np.log2(left)
        doublings = self._served_s / (self.options.age_priority_double * standing.scale_s)
        return standing.tag + progress - doublings
