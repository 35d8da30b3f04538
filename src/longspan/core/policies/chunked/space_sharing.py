"""Space sharing: a long prompt with slack to spare leaves a part of its iteration to short ones below it in rank.

It keeps (1 - rho) of the target, with rho its relative slack, at most a given share; and it is never left with less
than its smallest chunk. What the short ones do not use, it gets after all.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from longspan.core.actions import KVRange
from longspan.core.policies.chunked.iteration import Context, Iteration
from longspan.core.policies.chunked.ranking import Candidate


@dataclass(frozen=True, slots=True)
class Deferred:
    """A long prompt that gets its chunk after the short ones that share its iteration."""

    candidate: Candidate
    is_next: bool


class SpaceSharing:
    """The shares of one iteration. max_share: for short prompts beside a long one; 0 shares none.

    deferred: long prompts that share, in order of rank. They are one at most on each instance.
    """

    def __init__(self, iteration: Iteration, max_share: float) -> None:
        self.iteration = iteration
        self.max_share = max_share
        self.deferred: list[Deferred] = []
        self._with_long: set[int] = set()
        self._limits: dict[int, float] = {}

    def limit(self, instances: Iterable[int]) -> float:
        """Return the seconds up to which chunks of short prompts may fill an iteration of these instances."""
        return min([self._limits.get(number, math.inf) for number in instances]) if self._limits else math.inf

    def holds_back(
        self, candidate: Candidate, instances: tuple[int, ...], planned: KVRange, context: Context, is_next: bool
    ) -> bool:
        """Tell whether the prompt gets no chunk now: it is long, and shares, or comes after another long one there."""
        if not self.max_share:
            return False
        if not self.iteration.predictor.is_attention_bound(max(tokens for _, tokens in context)):
            return False
        if not self._with_long.isdisjoint(instances):
            return True
        self._with_long.update(instances)
        if not self._shares(candidate, instances, planned, context):
            return False
        self.deferred.append(Deferred(candidate, is_next))
        return True

    def _shares(self, candidate: Candidate, instances: tuple[int, ...], planned: KVRange, context: Context) -> bool:
        rho = float(min(candidate.standing.relative_slack, self.max_share))
        if rho <= 0.0:
            return False
        target, begun = self.iteration.target(instances), self.iteration.seconds(instances)
        floor = min(self.iteration.predictor.floor, planned.length)
        smallest = self.iteration.seconds_with(planned.instance, context, floor) - begun
        limit = min(begun + rho * target, target - smallest)
        if limit <= begun:
            return False
        self._limits.update(dict.fromkeys(instances, limit))
        return True
