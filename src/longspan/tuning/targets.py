"""The service levels that a deployment goes by where nobody says: derived from what its iterations take.

A target that is too short for a machine leaves chunks little beside what every iteration costs, so that long prompts
take many times as long; one that is too long makes readers wait. So it is long enough for efficient chunks, within
bounds that the objective sets; and never so short that decodes alone could not keep it.
"""

from __future__ import annotations

from dataclasses import dataclass

from longspan.config import DEFAULT_TTFT_FLOOR_S, Objective
from longspan.core.costs.cost_model import CostModel
from longspan.core.policies.longspan.policy import Longspan

_ITERATIONS_BEFORE = 2.5
"""A prompt may wait for the longest iteration that nobody's pace bounds, then has one of its own."""


@dataclass(frozen=True, slots=True)
class Aim:
    """What an objective asks of iterations.

    fixed_share: what costs the same for any chunk should be no more of an iteration. least_s, most_s: the default TPOT
    lies between, seconds. decodes: but is at least so many decode steps.
    """

    fixed_share: float
    least_s: float
    most_s: float
    decodes: float


AIMS: dict[Objective, Aim] = {
    "latency": Aim(fixed_share=0.4, least_s=0.025, most_s=0.05, decodes=1.5),
    "balanced": Aim(fixed_share=0.2, least_s=0.05, most_s=0.075, decodes=2.0),
    "throughput": Aim(fixed_share=0.1, least_s=0.1, most_s=0.5, decodes=4.0),
}


@dataclass(frozen=True, slots=True)
class Targets:
    """Service levels of requests that name none, seconds. reason: for the log."""

    tpot_s: float
    ttft_floor_s: float
    reason: str


def targets(model: CostModel, objective: Objective, aim: Aim | None = None) -> Targets:
    """Return the targets of a deployment that has these costs. aim: what is asked of iterations; by default the
    objective's."""
    aim = AIMS[objective] if aim is None else aim
    fixed_s, decode_s = model.prefill((), 1), model.decode(1, 0, 1, 1)
    wanted_s = fixed_s / aim.fixed_share
    tpot_s = min(max(wanted_s, aim.least_s), aim.most_s)
    reason = (
        f"an iteration with a chunk costs {_ms(fixed_s)} whatever its size, which should be at most "
        f"{aim.fixed_share:.0%} of it"
    )
    if tpot_s != wanted_s:
        reason += f"; {objective} keeps it between {_ms(aim.least_s)} and {_ms(aim.most_s)}"
    if aim.decodes * decode_s > tpot_s:
        tpot_s = aim.decodes * decode_s
        reason = f"a decode step takes {_ms(decode_s)}, and {objective} allows {aim.decodes:g} times that"
    floor_s = max(DEFAULT_TTFT_FLOOR_S, _ITERATIONS_BEFORE * max(fixed_s / Longspan.Options.idle_fixed_share, tpot_s))
    return Targets(_rounded(tpot_s), _rounded(floor_s), reason)


def _rounded(seconds: float) -> float:
    """To what is worth telling, so that a log's figure is the one that is used."""
    return float(f"{seconds:.3g}")


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms"
