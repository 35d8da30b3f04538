"""Coefficients from measurements: least squares of the *relative* error, none of them below zero.

A plain least squares would be blind for short batches, whose errors are small beside long ones', and is free to
give a negative fixed cost or cost per token (LoongServe's own fits have some): a policy then finds that more work
takes less time. With two to four columns every set of them that is not zero can simply be tried.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from itertools import combinations, pairwise
from typing import Any, NamedTuple, TypeVar

import numpy as np

from longspan.core.costs.cost_model import DecodeCoefficients, FittedCostModel, PrefillCoefficients
from longspan.errors import ConfigError
from longspan.profiler.grid import numbers_measured
from longspan.sib import MeasuredIteration, MeasuredMigration, Measurements


def fit_cost_model(measurements: Measurements, num_instances: int) -> FittedCostModel:
    """Return the model that is closest, for all numbers of instances up to this one.

    Raises ConfigError: for some number of instances or masters that is to be measured there is no measurement. A whole
        round of `fit_groups` has them all, if only there is room for a batch with a request for each master.
    """
    points: defaultdict[tuple[str, int], list[MeasuredIteration]] = defaultdict(list)
    for point in measurements.iterations:
        points[point.shape.kind, point.shape.num_instances].append(point)
    numbers = numbers_measured(num_instances)
    prefill = [_fit_prefill(points["prefill", number], number) for number in numbers]
    one_master = [_fit_decode(points["decode", number], number, 1) for number in numbers]
    all_masters = [_fit_decode(points["decode", number], number, number) for number in numbers[1:]]
    migration_fixed, migration_per_token = _fit_migration(measurements.migrations)
    return FittedCostModel(
        prefill_coefficients=tuple(_with_those_between(prefill)),
        decode_coefficients=tuple(
            sorted(
                (*_with_those_between(one_master), *_with_those_between(all_masters)),
                key=lambda row: (row.num_instances, row.num_masters),
            )
        ),
        migration_fixed=migration_fixed,
        migration_per_token=migration_per_token,
    )


class Fit(NamedTuple):
    """A fitted model.

    error: the sum of the squared relative errors.
    """

    coefficients: tuple[float, ...]
    error: float

    def is_closer(self, other: Fit) -> bool:
        """Tell whether its error is smaller by more than rounding, which differs between processors."""
        return self.error < other.error * (1 - 1e-9) - 1e-18


def nonnegative_least_squares(rows: Sequence[Sequence[float]], targets: Sequence[float]) -> Fit:
    """Return the x >= 0 that minimises sum(((row . x - target) / target)^2); targets above zero.

    Exact: the best x is the plain least-squares solution over those columns where it is not zero.
    """
    y = np.asarray(targets, dtype=float)
    a = np.asarray(rows, dtype=float) / y[:, None]
    scale = np.maximum(np.abs(a).max(axis=0), np.finfo(float).tiny)  # lengths and their squares are far apart
    a = a / scale
    columns = a.shape[1]
    best = Fit((0.0,) * columns, float(len(y)))
    for count in range(1, columns + 1):
        for chosen in map(list, combinations(range(columns), count)):
            x = np.linalg.lstsq(a[:, chosen], np.ones(len(y)), rcond=None)[0]
            coefficients = np.zeros(columns)
            coefficients[chosen] = x / scale[chosen]
            fit = Fit(tuple(map(float, coefficients)), float(((a[:, chosen] @ x - 1.0) ** 2).sum()))
            if x.min() >= 0.0 and fit.is_closer(best):
                best = fit
    return best


def _fit_prefill(points: Sequence[MeasuredIteration], num_instances: int) -> PrefillCoefficients:
    if not points:
        raise ConfigError(f"no prefill on {num_instances} instances was measured: the KV pool is too small")
    rows = [
        (
            1.0,
            sum(length for length, _ in point.shape.chunks),
            sum(length * (length + 2 * context) for length, context in point.shape.chunks),
        )
        for point in points
    ]
    fixed, per_token, per_pair = nonnegative_least_squares(rows, [point.seconds for point in points]).coefficients
    return PrefillCoefficients(
        num_instances=num_instances, fixed=fixed, per_token=per_token, per_pair=per_pair
    )


def _fit_decode(
    decodes: Sequence[MeasuredIteration], num_instances: int, num_masters: int
) -> DecodeCoefficients:
    points = [point for point in decodes if point.shape.num_masters == num_masters]
    if not points:
        raise ConfigError(
            f"no decode on {num_instances} instances with {num_masters} masters was measured: the KV pool is too small"
        )
    seconds = [point.seconds for point in points]
    batches = sorted({point.shape.num_requests for point in points})

    def fit(free: int) -> Fit:
        computed = [max(0.0, point.shape.num_requests - free) for point in points]
        contexts = [point.shape.context_tokens for point in points]
        return nonnegative_least_squares([(1.0, *row) for row in zip(computed, contexts, strict=True)], seconds)

    # At least two batch sizes must lie beyond the bend, or its place means nothing. Of bends that no measurement tells
    # apart (0 and the smallest batch) the first is taken.
    free, best = 0, fit(0)
    for bend in range(1, batches[-2] if len(batches) > 2 else 1):
        if (found := fit(bend)).is_closer(best):
            free, best = bend, found
    fixed, per_request, per_context_token = best.coefficients
    return DecodeCoefficients(
        num_instances=num_instances, num_masters=num_masters, fixed=fixed, per_request=per_request,
        per_context_token=per_context_token, free_requests=float(free),
    )  # fmt: skip


def _fit_migration(migrations: Sequence[MeasuredMigration]) -> tuple[float, float]:
    """(0, 0) where there is nobody to migrate to."""
    if not migrations:
        return 0.0, 0.0
    rows = [(1.0, migration.num_tokens) for migration in migrations]
    fixed, per_token = nonnegative_least_squares(rows, [migration.seconds for migration in migrations]).coefficients
    return fixed, per_token


RowT = TypeVar("RowT", PrefillCoefficients, DecodeCoefficients)


def _with_those_between(rows: Sequence[RowT]) -> Iterator[RowT]:
    """Rows of all numbers of instances, from those of some, in order."""
    for low, high in pairwise(rows):
        yield low
        for number in range(low.num_instances + 1, high.num_instances):
            yield _between(low, high, number)
    yield from rows[-1:]


def _between(low: RowT, high: RowT, num_instances: int) -> RowT:
    """What is fixed grows with each instance added; work is divided by their number, so its cost goes with 1 / n."""
    a, b, n = low.num_instances, high.num_instances, num_instances
    along, divided = (n - a) / (b - a), (1 / a - 1 / n) / (1 / a - 1 / b)

    def mean(name: str) -> float:
        share = divided if name.startswith("per_") else along
        return (1 - share) * float(getattr(low, name)) + share * float(getattr(high, name))

    changed: dict[str, Any] = {f.name: mean(f.name) for f in fields(low) if not f.name.startswith("num_")}
    if isinstance(high, DecodeCoefficients):
        changed["num_masters"] = 1 if high.num_masters == 1 else n
    return replace(low, num_instances=n, **changed)
