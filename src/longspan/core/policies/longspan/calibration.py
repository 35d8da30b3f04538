"""What becomes of predictions of first tokens, and what that says of those to come.

A request is in time, or turns out to be hopeless, and then it waits many times as long. So a quote is made of three
things that are known of those like it: how many were not in time, how much longer than predicted those took that were,
and how much longer the others.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from longspan.core.estimate import Estimate
from longspan.core.policies.longspan.eta import Forecast

_REMEMBERED, _ENOUGH = 200, 20
_RISK_GAIN = 0.03
_UNKNOWN = 1.6  # quoted over predicted, as long as nothing came of any
_SUPPOSED = [1.0, 1.0 / _UNKNOWN, _UNKNOWN] + [_UNKNOWN ** (n / 9 - 1.0) for n in range(1, 18)]
"""Ratios, of which the median is 1, and one in twenty is `_UNKNOWN`."""
_TOLERANCE = 1.3
_QUANTILES = np.array([0.5, 0.95]) + 1e-9  # sums of equal parts are hardly ever exact


class Kind(NamedTuple):
    """Whose predictions err alike, and who is as likely not to be in time: by size, coarser and finer, and by whether
    its tenant has had more than its share."""

    size: int
    fine_size: int
    is_over: bool = False

    @property
    def errs(self) -> tuple[int, bool]:
        return self.size, self.is_over

    @property
    def risk(self) -> tuple[int, bool]:
        return self.fine_size, self.is_over


class Calibration:
    """What came of earlier predictions, by their class: how much longer it took, of those in time and of those that
    were not, and how many were not. Of a class of which little is known, what came of all.

    error: of late, the part of the quotes that were not kept.
    """

    def __init__(self) -> None:
        self._ratios: dict[tuple[tuple[int, bool], bool], deque[float]] = {}
        self._arrays: dict[tuple[tuple[int, bool], bool], NDArray[np.float64]] = {}  # until more is learned
        self._all: dict[bool, deque[float]] = {is_late: deque(maxlen=_REMEMBERED) for is_late in (False, True)}
        self._risks: dict[tuple[tuple[int, bool], bool], _Share] = {}
        self._broken: deque[bool] = deque(maxlen=_REMEMBERED)

    def estimate(self, forecast: Forecast, kind: Kind) -> Estimate:
        """Return two quantiles of what becomes of those in time and of those that are not, together."""
        risk = self._share(forecast, kind).share
        in_time, late = self._known(kind, False), self._known(kind, True)
        seconds = np.concatenate((forecast.competing_s * in_time, forecast.relegated_s * late))
        parts = np.repeat(((1.0 - risk) / len(in_time), risk / len(late)), (len(in_time), len(late)))
        order = np.argsort(seconds, kind="stable")
        below = np.searchsorted(np.cumsum(parts[order]), _QUANTILES, side="right")
        median_s, quote_s = seconds[order[np.minimum(below, len(order) - 1)]].tolist()
        return Estimate(median_s, quote_s)

    def beyond(self, due_s: float, forecast: Forecast, kind: Kind, margin: float = 1.0) -> float:
        """Return the probability of taking longer than `due_s`, were it to take `margin` times as long as it will."""
        risk = self._share(forecast, kind).share
        found = 0.0
        for part, seconds, is_late in ((1.0 - risk, forecast.competing_s, False), (risk, forecast.relegated_s, True)):
            ratios = self._known(kind, is_late)
            found += part * int(np.count_nonzero(margin * ratios * seconds > due_s)) / len(ratios)
        return found

    def learn(self, forecast: Forecast, estimate: Estimate, took_s: float, is_late: bool, kind: Kind) -> None:
        """Note when a first token came. is_late: whether that was after its deadline."""
        ratio = took_s / max(forecast.relegated_s if is_late else forecast.competing_s, 1e-9)
        self._ratios.setdefault((kind.errs, is_late), deque(maxlen=_REMEMBERED)).append(ratio)
        self._all[is_late].append(ratio)
        self._arrays.clear()
        self._broken.append(took_s > max(_TOLERANCE * estimate.quote_s, estimate.quote_s + 1.0))

    def turned_out(self, is_late: bool, forecast: Forecast, kind: Kind) -> None:
        """Note whether one was, or will be, in time."""
        self._share(forecast, kind).note(is_late)

    @property
    def is_known(self) -> bool:
        """Whether enough has come of predictions to go by them."""
        return sum(map(len, self._all.values())) >= _ENOUGH

    @property
    def error(self) -> float:
        return sum(self._broken) / len(self._broken) if len(self._broken) >= _ENOUGH else 1.0

    def _share(self, forecast: Forecast, kind: Kind) -> _Share:
        return self._risks.setdefault((kind.risk, forecast.is_late), _Share(float(forecast.is_late)))

    def _known(self, kind: Kind, is_late: bool) -> NDArray[np.float64]:
        """Return the ratios; what is thought of those of which nothing is known, where few are."""
        found = self._arrays.get((kind.errs, is_late))
        if found is None:
            known = self._ratios.get((kind.errs, is_late), ())
            if len(known) < _ENOUGH:
                known = self._all[is_late]
            found = np.array([*known, *_SUPPOSED[: max(0, _ENOUGH - len(known))]])
            self._arrays[kind.errs, is_late] = found
        return found


class _Share:
    """A running share."""

    def __init__(self, supposed: float) -> None:
        self.share = supposed
        self._seen = 0

    def note(self, is_one: bool) -> None:
        self._seen += 1
        self.share += max(_RISK_GAIN, 1.0 / (self._seen + 1)) * (is_one - self.share)
