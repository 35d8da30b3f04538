"""On how many instances a prompt is computed.

One instance wastes least; several are faster, and what they waste on passing KV round their ring everybody else waits
for. So a prompt gets the width with the least sum of both: the seconds that it takes itself, and those by which it
keeps each of the others waiting. Alone a long one gets the largest team whose ring leaves it enough of an iteration; in
a crowd it gets fewer, a short one gets one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from statistics import median_low
from typing import Any

from longspan.config import SchedulerConfig
from longspan.core.books.request import Request, RequestStatus
from longspan.core.costs.cost_model import Chunk, CostModel
from longspan.core.policies.chunked.predictor import REMEMBERED, Predictor
from longspan.core.policies.chunked.ranking import Candidate
from longspan.core.policies.chunked.teams.width import ALONE, Team, Width

_DECODES = 1.5
"""Of the fixed costs: what an iteration of decodes alone takes, roughly."""
_WORTH = 0.5
"""Of an iteration that keeps the pace of decodes must be work, or passing KV round takes too much of it."""
_LARGEST = 4
"""Instances of a team, beside others. It computes when all decodes on all of them can spare the time, so larger ones
compute less; and teams of several sizes wait for each other's instances."""
_SPARE = 0.15
"""Of the time that it has: a prompt that one instance computes in that needs no team, and waits for none."""
_SLOW = 1.25
"""Times as long as the quicker half of all takes: instances that do are left out of teams, which are as slow as their
slowest. Beside the quickest alone, one that was believed to be quick, and got nothing more to do that would tell
otherwise, left nobody to be in a team."""


class ElasticPredictor(Predictor):
    """A predictor whose prompts, alone, run on as many instances as are best.

    sizes: of the teams that there are.
    """

    sizes: Sequence[int] = (1,)

    def __init__(self, model: CostModel, config: SchedulerConfig, **figures: Any) -> None:
        """Take what `Predictor` takes."""
        super().__init__(model, config, **figures)
        self.use(self.sizes)

    def use(self, sizes: Sequence[int]) -> None:
        """Predict with teams of these sizes from now on."""
        self.sizes = sizes
        self.alone = lru_cache(REMEMBERED)(self._on_the_best)

    def _on_the_best(self, tokens: int) -> float:
        prompt = (Chunk(tokens),)
        return min([self.whole_prefill(tokens), *[self.model.prefill(prompt, size) for size in self.sizes]])


class ElasticWidth(Width):
    """Teams of neighbours: beside others all of one size, which `team_size` says; alone of any that divides evenly.

    num_others: prompts that wait or are computed, beside the one that is asked about. is_decoding: whether any request
    decodes, so that iterations must be short.
    """

    def __init__(self, predictor: Predictor, most: int | None = None, first: int = 0) -> None:
        """Make them of `predictor`'s instances. most: of a team. first: the first instance's number."""
        super().__init__()
        self.num_others = 0
        self.is_decoding = False
        self._predictor, self._most = predictor, most
        self._iteration_s = {True: predictor.pace_s, False: predictor.idle_target}
        self._remaining = predictor.remaining
        self._slowness = predictor.feedback.slowness
        self.follow(range(first, first + predictor.config.num_instances))

    def follow(self, numbers: Sequence[int]) -> None:
        """Make teams of these instances from now on."""
        predictor, most = self._predictor, self._most
        model, idle_s = predictor.model, predictor.idle_target
        self._numbers, self.num_instances = numbers, len(numbers)
        self.sizes = team_sizes(self.num_instances, most)
        beside = team_size(self.num_instances, most)
        paced = {size: paced_efficiency(predictor, size) for size in (1, beside)}
        self._beside = [size for size in paced if size == 1 or paced[size] >= _WORTH]
        self._speedup = max([size * paced[size] / paced[1] for size in self._beside])
        idle = {size: efficiency(model, size, idle_s) for size in (*self.sizes, *self._beside)}
        self._efficiency = {True: paced, False: idle}

    def quickest(self, request: Request, work_s: float) -> float:
        """Return the seconds for so much of its work, seconds of one instance, on as many as will help."""
        if request.id not in self.wide and request.status is not RequestStatus.WAITING:
            return work_s  # it has begun alone
        return max(min(work_s, self._iteration_s[True]), work_s / self._speedup)

    def choose(self, candidate: Candidate, rooms: Mapping[int, int]) -> Team:
        standing, work_s = candidate.standing, self._remaining(candidate.request)
        left_s = standing.arrived + standing.deadline_s - standing.now
        teams = self._teams(self.size(work_s, left_s))
        together = [sum([max(0, rooms[number]) for number in team]) for team in teams]
        return teams[together.index(max(together))] if teams else ALONE

    def size(self, work_s: float, left_s: float) -> int:
        """Return the number of instances for so much work, seconds of one instance. left_s: until it is due."""
        if work_s <= self._iteration_s[self.is_decoding]:
            return 1
        is_alone = not self.num_others and not self.is_decoding
        if not is_alone and work_s <= _SPARE * left_s:
            return 1
        efficiencies = self._efficiency[self.is_decoding]

        def cost_s(size: int) -> float:
            used_s = work_s / efficiencies[size]
            return used_s / size + self.num_others * used_s / self.num_instances

        return min(self.sizes if is_alone else self._beside, key=lambda size: (cost_s(size), size))

    def _teams(self, size: int) -> list[Team]:
        """Return those of the size, without the instances that are much slower than others."""
        if size == 1:
            return []
        slowness = {number: self._slowness(number) for number in self._numbers}
        most = _SLOW * median_low(slowness.values())
        able = [
            tuple([number for number in self._numbers[begin : begin + size] if slowness[number] <= most])
            for begin in range(0, self.num_instances - size + 1, size)
        ]
        return [team for team in able if len(team) > 1]


def team_sizes(num_instances: int, most: int | None) -> list[int]:
    """Return those that divide the instances evenly. most: of a team."""
    sizes = range(1, num_instances + 1)
    return [size for size in sizes if num_instances % size == 0 and (most is None or size <= most)]


def team_size(num_instances: int, most: int | None) -> int:
    """Return the size of teams beside others. most: of a team.

    The largest of three or four that divides the instances evenly; else of four or less, and some are in no team.
    """
    largest = min(_LARGEST, num_instances, most or _LARGEST)
    return max(range(1, largest + 1), key=lambda size: (size > 2 and num_instances % size == 0, size))


def efficiency(model: CostModel, size: int, seconds: float) -> float:
    """Return which part of an iteration that takes so long is work, if a team of such a size runs it."""
    return max(1e-3, 1.0 - model.prefill((), size) / seconds)


def paced_efficiency(predictor: Predictor, size: int) -> float:
    """Return the same for iterations that keep the pace of decodes.

    A team either keeps it in each, or saves up for a long one in iterations in which decodes are alone.
    """
    model, paced_s = predictor.model, predictor.pace_s
    in_each = efficiency(model, size, paced_s)
    saved_s = predictor.team_target(size, predictor.team_burst * paced_s)
    alone_s = _DECODES * model.prefill((), 1)
    if size == 1 or saved_s <= paced_s or alone_s >= paced_s:
        return in_each
    saving_s = alone_s * (saved_s - paced_s) / (paced_s - alone_s)
    return max(in_each, (saved_s - model.prefill((), size)) / (saved_s + saving_s))
