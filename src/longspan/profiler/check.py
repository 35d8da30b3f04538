"""Predicted beside measured."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from longspan.core.costs.batch_shape import BatchShape
from longspan.core.costs.cost_model import CostModel
from longspan.sib import Measurements


@dataclass(frozen=True, slots=True)
class Comparison:
    """One measurement beside its prediction.

    kind: "prefill", "decode", "mixed" or "migration". work: the batch, or the tokens that moved. Seconds.
    """

    kind: str
    work: BatchShape | int
    measured: float
    predicted: float

    @property
    def relative_error(self) -> float:
        """Below zero where it took longer than predicted."""
        return self.predicted / self.measured - 1.0


@dataclass(frozen=True, slots=True)
class ErrorSummary:
    """A summary of relative errors without their sign."""

    count: int
    mean: float
    largest: float


@dataclass(frozen=True, slots=True)
class Check:
    comparisons: tuple[Comparison, ...]

    def kinds(self) -> list[str]:
        return list(dict.fromkeys(comparison.kind for comparison in self.comparisons))

    def summary(self, kind: str | None = None) -> ErrorSummary:
        """Summarise one kind, or all."""
        errors = [abs(c.relative_error) for c in self.comparisons if kind in (None, c.kind)]
        return ErrorSummary(len(errors), statistics.mean(errors), max(errors))


def check_predictions(model: CostModel, measurements: Measurements) -> Check:
    """Check predictions, sorted by kind, instances, and time."""
    points = sorted(
        measurements.iterations,
        key=lambda p: (p.shape.kind != "prefill", p.shape.kind, p.shape.num_instances, p.seconds),
    )
    batches = [Comparison(p.shape.kind, p.shape, p.seconds, p.shape.predict(model)) for p in points]
    migrations = [
        Comparison("migration", point.num_tokens, point.seconds, model.migration(point.num_tokens))
        for point in measurements.migrations
    ]
    return Check((*batches, *sorted(migrations, key=lambda c: c.measured)))
