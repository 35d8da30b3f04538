"""Axes that people can read: whole numbers for instances, a few round ticks for any range. Needs matplotlib."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

MOST_TICKS = 8
_ALMOST_ONE = 1e-3  # of it; values closer than this are one value, and its noise
_ROUND = ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0))
"""Of each power of ten, from few to many."""
_NARROW = 1.5
"""An axis whose ends are no further apart than by this factor has ticks as if it were linear."""


def count_whole(axis: Axis, first: int, last: int, margin: float = 0.5) -> None:
    """Let an axis show the whole numbers from `first` to `last`, all of them, and nothing between them.

    Where they are many, only some have ticks. margin: how much is seen on both sides.
    """
    step = next(
        size * 10**power for power in range(9) for size in (1, 2, 5) if (last - first) / (size * 10**power) < MOST_TICKS
    )
    ticks = [number for number in range(first, last + 1) if number % step == 0 or number == first]
    axis.set_ticks(ticks, [str(number) for number in ticks], minor=False)
    axis.set_ticks([], minor=True)
    axis.axes.set(**{f"{axis.axis_name}lim": (first - margin, last + margin)})  # type: ignore[attr-defined]  # stubs lack axis_name


def make_readable(axes: Axes) -> None:
    """Give the logarithmic axes of a plot that is drawn some round ticks, however narrow or wide their ranges are.

    Axes whose ticks have been set stay as they are.
    """
    from matplotlib.ticker import FixedLocator

    for axis in (axes.xaxis, axes.yaxis):
        scale = axis.get_scale()
        is_set = isinstance(axis.get_major_locator(), FixedLocator)
        if is_set or scale not in ("log", "symlog") or not axes.has_data():
            continue
        low, high = _widened(axis)
        linear_to = axis.get_transform().linthresh if scale == "symlog" else 0.0  # type: ignore[attr-defined]  # of symlog
        if 0.0 <= high <= linear_to:
            axis.axes.set(**{f"{axis.axis_name}scale": "linear"})
            ticks = _linear_ticks(low, high)
        else:
            ticks = round_ticks(low, high, linear_to)
        if len(ticks) > 1:
            axis.set_ticks(ticks, [f"{tick:g}" for tick in ticks], minor=False)
            axis.set_ticks([], minor=True)


def _widened(axis: Axis) -> tuple[float, float]:
    """The ends of an axis; those that are all but the same are moved apart by a tenth."""
    low, high = sorted(axis.get_view_interval())
    if high > 0.0 and high - low < _ALMOST_ONE * high:
        low, high = 0.9 * low, 1.1 * high
        axis.axes.set(**{f"{axis.axis_name}lim": (low, high)})  # type: ignore[attr-defined]  # stubs lack axis_name
    return low, high


def round_ticks(low: float, high: float, linear_to: float = 0.0) -> list[float]:
    """Return round numbers between these, at least three where there are any, `MOST_TICKS` at most.

    linear_to: what is no further from 0 than this is drawn as on a linear axis; there is a tick at 0 then.
    """
    if linear_to:
        least = max(linear_to, low)
        around = [0.0] if low <= 0.0 <= high else []
        above = round_ticks(least, high) if high > least > 0.0 else []
        return [*around, *(above[1:] if len(above) == MOST_TICKS else above)]
    if low <= 0.0 or not low < high < math.inf:
        return []
    if high / low <= _NARROW:
        return _linear_ticks(low, high)
    for steps in _ROUND:
        found = _ticks_of(steps, low, high)
        if len(found) >= 3:
            return _thinned(found)
    return _linear_ticks(low, high)


def _ticks_of(steps: Sequence[float], low: float, high: float) -> list[float]:
    """The multiples by these of powers of ten in [low, high]."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    every = [float(f"{step}e{power}") for power in powers for step in steps]
    return [tick for tick in every if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)]


def _thinned(ticks: list[float]) -> list[float]:
    """Every second of them, or third, ... so that they are not too many."""
    return ticks[:: -(-len(ticks) // MOST_TICKS)]


def _linear_ticks(low: float, high: float) -> list[float]:
    """Round numbers at equal distances."""
    power = math.floor(math.log10((high - low) / MOST_TICKS))
    steps = [float(f"{size}e{power + more}") for more in (0, 1) for size in (1, 2, 5)]
    step = next(step for step in steps if (high - low) / step <= MOST_TICKS - 1)
    first = math.ceil(low / step - 1e-9)
    ticks = [float(f"{number * step:.12g}") for number in range(first, math.floor(high / step + 1e-9) + 1)]
    assert all(one < other for one, other in pairwise(ticks))
    return ticks
