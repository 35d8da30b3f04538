"""Runs groups of episodes within a time budget, and sums up what came out.

Rounds go over all groups, cheap ones first, which run several times. A group runs its episode on every number of
instances right after one another, each round in another order, so that a machine that drifts does so for all of them
alike.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from longspan.core.costs.batch_shape import BatchShape
from longspan.core.costs.cost_model import CostModel
from longspan.core.policies.episode import EpisodePolicy
from longspan.engine.async_llm import AsyncLLM
from longspan.engine.episodes import run_episode
from longspan.profiler.grid import Group
from longspan.sib import MeasuredIteration, MeasuredMigration, Measurements

MOST_ROUNDS = 5
_MOST_TIMES = 3  # that a cheap group runs in each of them
_CHEAP_S = 0.5
_FIRST_ROUND = 0.7  # of the budget, at most: the rest is for second looks
_EXTRAPOLATION = 2.0  # how far off a prediction may be for lengths that have not run yet


@dataclass(frozen=True, slots=True)
class Measured:
    """A step of progress.

    seconds: of the budget, gone. text: what has just been measured.
    """

    seconds: float
    text: str


Report = Callable[[Measured], None]


class Measurer:
    """One measurement on one engine, which must be of this policy.

    begun: when the budget began, on `time.monotonic`. What is expected to exceed it is left out, save for the cheapest
    group.
    model_so_far: predicts what has not run yet; None while too little has. Until then the budget does not count: less
    would be of no use.
    """

    def __init__(
        self,
        engine: AsyncLLM,
        policy: EpisodePolicy,
        model_so_far: Callable[[Measurements], CostModel | None],
        begun: float,
        budget_s: float,
        report: Report,
    ) -> None:
        self.engine = engine
        self.policy = policy
        self.model_so_far = model_so_far
        self.begun = begun
        self.budget_s = budget_s
        self.report = report
        self._samples: dict[BatchShape | int, list[float]] = defaultdict(list)
        self._unqueued: list[float] = []
        self._took: dict[Group, float] = {}

    async def measure(self, groups: Sequence[Group]) -> Measurements:
        await self._run(groups[0], 0)
        self._samples.clear()  # the first time everything is slow
        self._unqueued.clear()
        for number in range(MOST_ROUNDS):
            until = self.budget_s * (_FIRST_ROUND if number == 0 else 1.0)
            ran = [await self._run_if_it_fits(group, number + place, until) for place, group in enumerate(groups)]
            if not any(ran):
                break
        return self._summary()

    async def _run_if_it_fits(self, group: Group, turn: int, until: float) -> bool:
        expected = self._expected(group) if self._samples else None
        if expected is not None and self._gone() + expected > until:
            return False
        await self._run(group, turn)
        return True

    async def _run(self, group: Group, turn: int) -> None:
        begin = self._gone()
        for _ in range(_MOST_TIMES):
            for place in range(len(group)):
                for step in await run_episode(self.engine, self.policy, group[(turn + place) % len(group)]):
                    self._samples[step.work].append(step.seconds)
                    if step.first_s is not None:
                        self._unqueued.append(step.first_s - step.seconds)
            if self._gone() - begin > _CHEAP_S:
                break
        self._took[group] = self._gone() - begin
        self.report(Measured(self._gone(), _describe(group)))

    def _expected(self, group: Group) -> float | None:
        """Seconds: as long as last time; else what the model says, with reserve."""
        if group in self._took:
            return self._took[group]
        model = self.model_so_far(self._summary())
        return None if model is None else _EXTRAPOLATION * sum(episode.predict(model) for episode in group)

    def _gone(self) -> float:
        return time.monotonic() - self.begun

    def _summary(self) -> Measurements:
        iterations, migrations = [], []
        for work, seconds in self._samples.items():
            mean, count = statistics.fmean(seconds), len(seconds)
            if isinstance(work, BatchShape):
                iterations.append(MeasuredIteration(shape=work, seconds=mean, samples=count))
            else:
                migrations.append(MeasuredMigration(num_tokens=work, seconds=mean, samples=count))
        unqueued_s = max(0.0, statistics.median(self._unqueued)) if self._unqueued else 0.0
        return Measurements(iterations=tuple(iterations), migrations=tuple(migrations), unqueued_s=unqueued_s)


def _describe(group: Group) -> str:
    prompts = group[0].prompts
    requests = "1 request" if len(prompts) == 1 else f"{len(prompts)} requests"
    return f"{requests} of {sum(prompts)} tokens in all, DoP {', '.join(str(e.instances) for e in group)}"
