"""What first principles miss on a machine that was measured: factors, interpolated between the measured iterations.

Kernels are better at some sizes than elsewhere, and caches have edges; a roofline of ten figures has none of that. An
iteration's factor is the mean of those of measured iterations of its kind, on as many instances, with as many masters;
near ones count most (inverse-distance weighting), by tokens, requests and context, all as powers of two.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from math import exp, log, log2

from longspan.core.actions import RunBatch

Kind = tuple[str, int, int]
"""Prefill, mixed or decode; instances; masters of what decodes, where there are no prompts."""
_SOFTENING = 0.25
"""Squared distance within which measured iterations are averaged rather than told apart: timings are noisy."""


@dataclass(frozen=True, slots=True)
class Residual:
    """One measured iteration, by its place among those of its kind. log_factor: of its seconds over those predicted."""

    place: tuple[float, ...]
    log_factor: float


@dataclass(frozen=True, slots=True)
class Residuals:
    points: dict[Kind, tuple[Residual, ...]]

    @classmethod
    def of(cls, measured: Iterable[tuple[RunBatch, float]]) -> Residuals:
        """Fit factors. measured: batches, and the seconds that they took over those predicted."""
        points: defaultdict[Kind, list[Residual]] = defaultdict(list)
        for batch, factor in measured:
            kind, place = _where(batch)
            points[kind].append(Residual(place, log(factor)))
        return cls({kind: tuple(found) for kind, found in points.items()})

    def factor(self, batch: RunBatch) -> float:
        """Return the factor: 1 for a kind that was not measured; but mixed ones then count as prefills."""
        kind, place = _where(batch)
        if kind not in self.points and kind[0] == "mixed":
            kind = ("prefill", *kind[1:])
        weights = weighted = 0.0
        for point in self.points.get(kind, ()):
            distance = sum([(a - b) ** 2 for a, b in zip(place, point.place, strict=True)])
            weight = (distance + _SOFTENING) ** -2
            weights += weight
            weighted += weight * point.log_factor
        return exp(weighted / weights) if weights else 1.0


def _where(batch: RunBatch) -> tuple[Kind, tuple[float, ...]]:
    """Kind, and place among others of it, in which decodes beside prompts are left out: these decide."""
    chunks = [segment for segment in batch.segments if segment.length > 1]
    counted = chunks or batch.segments
    tokens = sum([segment.length for segment in counted])
    context = sum([segment.start * segment.length for segment in counted]) / tokens
    masters = 0 if chunks else len({segment.compute for segment in counted})
    kind = "decode" if not chunks else "prefill" if len(chunks) == len(batch.segments) else "mixed"
    return (kind, len(batch.group), masters), (log2(tokens), log2(len(counted)), log2(1.0 + context / 64.0))
