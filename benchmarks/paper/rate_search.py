"""The highest rate that a system bears, by whichever figure; every rate is simulated once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.paper.simulated import Deployed
from longspan.metrics.request_metrics import SLO, measure
from longspan.simulator.capacity import highest
from longspan.simulator.load import offered_load
from longspan.workload.traces import TraceRequest

FIRST_LOAD = 0.7  # of capacity: where a search begins
MOST_LOAD = 4.0  # where it gives up


@dataclass(frozen=True, slots=True)
class Point:
    """One rate, tried. Latencies: means over requests, seconds a token; attainment: the share within the SLO."""

    rate: float
    requests: int
    refused: int
    load: float
    per_token_s: float
    input_s: float
    output_s: float
    attainment: float

    @property
    def late(self) -> float:
        return 1.0 - self.attainment


class Search:
    """requests: those that arrive at a rate. slo: what `attainment` is of."""

    def __init__(self, deployed: Deployed, requests: Callable[[float], list[TraceRequest]], slo: SLO) -> None:
        self.deployed = deployed
        self.requests = requests
        self.slo = slo
        self.points: dict[float, Point] = {}

    def at(self, rate: float) -> Point:
        if rate not in self.points:
            requests = self.requests(rate)
            metrics = measure(self.deployed.run(requests).records(), slo=self.slo).classes["all"]
            self.points[rate] = Point(
                rate=rate,
                requests=len(requests),
                refused=metrics.num_refused,
                load=self._load(requests),
                per_token_s=metrics.per_token_s or 0.0,
                input_s=metrics.input_s or 0.0,
                output_s=metrics.output_s or 0.0,
                attainment=metrics.slo_attainment or 0.0,
            )
        return self.points[rate]

    def highest(self, figure: str, limit: float, some_rate: float) -> float | None:
        """Where a field of `Point` that grows with the rate meets its limit, interpolated linearly between the highest
        rate tried that keeps it and the lowest that does not.

        0 if there are requests that the system refuses; None if MOST_LOAD keeps it still. some_rate: at which the load
        is worked out, to begin.
        """
        full = some_rate / self._load(self.requests(some_rate))
        if self.at(FIRST_LOAD * full).refused:
            return 0.0
        low = highest(
            lambda rate: rate <= MOST_LOAD * full and getattr(self.at(rate), figure) <= limit, FIRST_LOAD * full
        )
        return self.interpolated(figure, limit) if low else 0.0

    def interpolated(self, figure: str, limit: float) -> float | None:
        """The same, between rates that were tried already; None if no two of them have the limit between them."""
        values = {rate: getattr(point, figure) for rate, point in sorted(self.points.items())}
        above = next((rate for rate, value in values.items() if value > limit), None)
        below = max((rate for rate in values if above is not None and rate < above), default=None)
        if above is None or below is None:
            return None
        return below + (above - below) * (limit - values[below]) / (values[above] - values[below])

    def _load(self, requests: list[TraceRequest]) -> float:
        return offered_load(requests, self.deployed.cost, self.deployed.config) or 1.0
