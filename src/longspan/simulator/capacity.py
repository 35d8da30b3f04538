"""How much a fleet bears: the highest rate, or the fewest instances, at which enough requests are served in time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from longspan.config import SchedulerConfig
from longspan.core.costs.cost_model import FittedCostModel
from longspan.metrics.request_metrics import SLO, measure
from longspan.simulator.cost import IterationCost
from longspan.simulator.limits import OutputLimit
from longspan.simulator.simulator import Simulator
from longspan.workload.traces import TraceRequest

RATE_TOLERANCE = 0.05
_SLOWEST, _FASTEST = 1e-6, 1e6  # requests a second


@dataclass(frozen=True, slots=True)
class Trial:
    """What one simulation showed.

    attainment: the lower of both classes' shares. num_late: requests refused since their first token would have come
    later than was promised; they are not within the SLO. hit_rate: the part of the prompt tokens that was found
    computed; None where the trace does not tell.
    """

    attainment: float
    num_late: int
    hit_rate: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """The share of requests that a fleet shall serve in time.

    attainment: the share of requests that shall be within the SLO, of the short ones and of the long ones alike;
    over all, the many would hide the few.
    """

    slo: SLO
    attainment: float = 0.9
    long_threshold: int = 4096

    def try_out(
        self,
        requests: Sequence[TraceRequest],
        config: SchedulerConfig,
        cost: IterationCost,
        cost_model: FittedCostModel,
        limit: OutputLimit = "longest",
    ) -> Trial:
        """Simulate these requests."""
        simulator = Simulator(
            config, cost, cost_model=cost_model, max_model_len=cost.fleet.model.max_model_len, limit=limit
        )
        simulation = simulator.run(requests)
        metrics = measure(simulation.records(), slo=self.slo, long_threshold=self.long_threshold)
        attainment = min(c.slo_attainment for c in metrics.classes.values() if c.slo_attainment is not None)
        prefixes = simulation.prefixes
        return Trial(
            attainment, sum(request.refusal == "late" for request in simulation.requests),
            prefixes.hit_rate if prefixes.num_arrived else None,
        )  # fmt: skip


def faster(requests: Sequence[TraceRequest], factor: float) -> list[TraceRequest]:
    """Return the same requests, in the same order and with the same bursts, so many times as fast."""
    return [replace(request, arrived_at_s=(request.arrived_at_s or 0.0) / factor) for request in requests]


def highest(holds: Callable[[float], bool], guess: float) -> float:
    """Return the highest number for which `holds` is true, within RATE_TOLERANCE below; 0 if it is for none.

    holds: true up to some number, false above it. Noise near that number shifts the result, no more.
    """
    low, high = 0.0, guess
    while high < _FASTEST and holds(high):
        low, high = high, 2 * high
    while low == 0.0:
        if high < _SLOWEST:
            return 0.0
        tried = high / 2
        low, high = (tried, high) if holds(tried) else (0.0, tried)
    while high / low > 1 + RATE_TOLERANCE:
        tried = (low * high) ** 0.5
        low, high = (tried, high) if holds(tried) else (low, tried)
    return low


def fewest(holds: Callable[[int], bool], most: int) -> int | None:
    """Return the lowest number from 1 to `most` for which `holds` is true; None if it is for none.

    holds: false up to some number, true above it.
    """
    if not holds(most):
        return None
    low, high = 0, most  # false, true
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
