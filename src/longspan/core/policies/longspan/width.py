"""On how many instances a prompt is computed.

One instance wastes least; several are faster, and what they waste on passing KV round their ring everybody else waits
for. So a prompt gets the width with the least sum of both: the seconds that it takes itself, and those by which it
keeps each of the others waiting. Alone a long one gets the largest team whose ring leaves it enough of an iteration; in
a crowd it gets fewer, a short one gets one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from longspan.config import SchedulerConfig
from longspan.core.books.request import Request, RequestStatus
from longspan.core.costs.cost_model import Chunk, CostModel
from longspan.core.policies.chunked.predictor import REMEMBERED, Predictor
from longspan.core.policies.chunked.ranking import Candidate
from longspan.core.policies.chunked.teams.width import ALONE, Team, Width

_DECODES = 1.5
"""Of the fixed costs: what an iteration of decodes alone takes, roughly."""
_WORTH = 0.7
"""Of an iteration that keeps the pace of decodes must be work, or passing KV round takes too much of it."""


class ElasticPredictor(Predictor):
    """A predictor whose prompts, alone, run on as many instances as are best.

    sizes: of the teams that there are.
    """

    sizes: Sequence[int] = (1,)

    def __init__(self, model: CostModel, config: SchedulerConfig, **figures: Any) -> None:
        """Take what `Predictor` takes."""
        super().__init__(model, config, **figures)
        self.alone = lru_cache(REMEMBERED)(self._on_the_best)

    def _on_the_best(self, tokens: int) -> float:
        prompt = (Chunk(tokens),)
        return min([self.whole_prefill(tokens), *[self.model.prefill(prompt, size) for size in self.sizes]])


class ElasticWidth(Width):
    """Teams of neighbours, of sizes that divide the instances evenly.

    num_others: prompts that wait or are computed, beside the one that is asked about. is_decoding: whether any request
    decodes, so that iterations must be short.
    """

    gathers = True

    def __init__(self, predictor: Predictor, most: int | None = None, first: int = 0) -> None:
        """Make them of `predictor`'s instances. most: of a team. first: the first instance's number."""
        super().__init__()
        self.num_others = 0
        self.is_decoding = False
        model, self.num_instances = predictor.model, predictor.config.num_instances
        paced_s, idle_s = predictor.aim * predictor.config.tpot_slo_s, predictor.idle_target
        self._numbers = numbers = range(first, first + self.num_instances)
        self.sizes = team_sizes(self.num_instances, most)
        self._teams = {
            size: [tuple(range(begin, begin + size)) for begin in numbers[::size]] for size in self.sizes
        }
        self._efficiency = {
            True: {size: paced_efficiency(predictor, size) for size in self.sizes},
            False: {size: efficiency(model, size, idle_s) for size in self.sizes},
        }
        self._iteration_s = {True: paced_s, False: idle_s}
        self._whole_prefill = predictor.whole_prefill
        paced = self._efficiency[True]
        self._worth = [size for size in self.sizes if size == 1 or paced[size] >= _WORTH]
        self._speedup = max([size * paced[size] / paced[1] for size in self._worth])

    def quickest(self, request: Request, work_s: float) -> float:
        """Return the seconds for so much of its work, seconds of one instance, on as many as will help."""
        if request.id not in self.wide and request.status is not RequestStatus.WAITING:
            return work_s  # it has begun alone
        return max(min(work_s, self._iteration_s[True]), work_s / self._speedup)

    def choose(self, candidate: Candidate, rooms: Mapping[int, int]) -> Team:
        size = self.size(self._whole_prefill(candidate.request.num_tokens))
        if size == 1:
            return ALONE
        teams = self._teams[size]
        free = [room if room > 0 else 0 for room in map(rooms.__getitem__, self._numbers)]
        together = [sum(free[begin : begin + size]) for begin in range(0, len(free), size)]
        return teams[together.index(max(together))]

    def size(self, work_s: float) -> int:
        """Return the number of instances for so much work, seconds of one instance."""
        if work_s <= self._iteration_s[self.is_decoding]:
            return 1
        efficiencies = self._efficiency[self.is_decoding]

        def cost_s(size: int) -> float:
            used_s = work_s / efficiencies[size]
            return used_s / size + self.num_others * used_s / self.num_instances

        return min(self._worth, key=lambda size: (cost_s(size), size))


def team_sizes(num_instances: int, most: int | None) -> list[int]:
    """Return those that divide the instances evenly. most: of a team."""
    sizes = range(1, num_instances + 1)
    return [size for size in sizes if num_instances % size == 0 and (most is None or size <= most)]


def efficiency(model: CostModel, size: int, seconds: float) -> float:
    """Return which part of an iteration that takes so long is work, if a team of such a size runs it."""
    return max(1e-3, 1.0 - model.prefill((), size) / seconds)


def paced_efficiency(predictor: Predictor, size: int) -> float:
    """Return the same for iterations that keep the pace of decodes.

    A team either keeps it in each, or saves up for a long one in iterations in which decodes are alone.
    """
    model, paced_s = predictor.model, predictor.pace_s
    in_each = efficiency(model, size, paced_s)
    saved_s, alone_s = predictor.team_target(size), _DECODES * model.prefill((), 1)
    if size == 1 or saved_s <= paced_s or alone_s >= paced_s:
        return in_each
    saving_s = alone_s * (saved_s - paced_s) / (paced_s - alone_s)
    return max(in_each, (saved_s - model.prefill((), size)) / (saved_s + saving_s))
