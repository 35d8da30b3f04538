"""A machine's figures from timings: Levenberg-Marquardt on the logarithms, of figures and of times alike.

So every figure stays above zero, and every timing counts by its relative error, short or long.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from longspan.core.actions import MigrateKV, RunBatch
from longspan.core.costs.batch_shape import BatchShape
from longspan.simulator.cost import IterationCost
from longspan.simulator.fleet import Fleet
from longspan.simulator.machine import Machine
from longspan.simulator.spread import evenly_spread

Floats = NDArray[np.float64]
_STEP = 1e-3  # of a logarithm, for the derivatives
_ROUNDS = 60
_MOST_DAMPING = 1e6


@dataclass(frozen=True, slots=True)
class Timing:
    """A measured time, and what took it.

    work: an iteration with its KV spread evenly, or how many tokens a migration moved. fleet: on what it ran; of
    its machine only the name and data sheet count. weight: of its squared error.
    """

    label: str
    fleet: Fleet
    work: BatchShape | int
    seconds: float
    weight: float = 1.0

    def action(self) -> RunBatch | MigrateKV:
        if isinstance(self.work, BatchShape):
            return evenly_spread(self.work)
        return MigrateKV(0, "moved", source=0, target=1, ranges=((0, self.work),))

    def predict(self, machine: Machine) -> float:
        """Return the predicted seconds."""
        return IterationCost(replace(self.fleet, machine=machine)).duration(self.action()).total

    def error(self, machine: Machine) -> float:
        """Return the relative error; below zero where it took longer than predicted."""
        return self.predict(machine) / self.seconds - 1.0


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure of a machine to be fitted, such as ("efficiency", "matmul"), and between what it may lie."""

    group: str
    name: str
    low: float
    high: float


def calibrate(machine: Machine, figures: Sequence[Figure], timings: Sequence[Timing]) -> Machine:
    """Return `machine` with the figures that come closest to the timings, beginning from its own."""
    actions = [timing.action() for timing in timings]
    measured = np.log([timing.seconds for timing in timings])
    weights = np.sqrt([timing.weight for timing in timings])

    def residuals(x: Floats) -> Floats:
        changed = _changed(machine, figures, x)
        costs = {timing.fleet: IterationCost(replace(timing.fleet, machine=changed)) for timing in timings}
        pairs = zip(timings, actions, strict=True)
        predicted = [costs[timing.fleet].duration(action).total for timing, action in pairs]
        return np.asarray(weights * (np.log(predicted) - measured), dtype=np.float64)

    low, high = (np.log([getattr(figure, end) for figure in figures]) for end in ("low", "high"))
    start = np.log([getattr(getattr(machine, figure.group), figure.name) for figure in figures])
    return _changed(machine, figures, _least_squares(residuals, np.clip(start, low, high), low, high))


def mean_error(machine: Machine, timings: Sequence[Timing]) -> float:
    """Return the mean of the relative errors without their sign."""
    return statistics.mean(abs(timing.error(machine)) for timing in timings)


def _least_squares(residuals: Callable[[Floats], Floats], x: Floats, low: Floats, high: Floats) -> Floats:
    """Levenberg-Marquardt; steps are cut off at the bounds."""
    error, damping = residuals(x), 1e-2
    for _ in range(_ROUNDS):
        slopes = np.stack([(residuals(x + step) - error) / _STEP for step in _STEP * np.eye(len(x))], axis=1)
        curvature = slopes.T @ slopes
        while damping < _MOST_DAMPING:
            step = np.linalg.solve(curvature + damping * np.eye(len(x)), -slopes.T @ error)
            tried = np.clip(x + step, low, high)
            tried_error = residuals(tried)
            if tried_error @ tried_error < error @ error:
                break
            damping *= 4.0
        else:
            return x
        x, error, damping = tried, tried_error, damping / 4.0
    return x


def _changed(machine: Machine, figures: Sequence[Figure], x: Floats) -> Machine:
    def change(machine: Machine, pair: tuple[Figure, float]) -> Machine:
        figure, value = pair
        group = replace(getattr(machine, figure.group), **{figure.name: float(np.exp(value))})
        return replace(machine, **{figure.group: group})

    return reduce(change, zip(figures, x, strict=True), machine)
