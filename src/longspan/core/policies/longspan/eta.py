"""When a request will get its first token: the policy's own order, played forward.

Ahead of it are those that go before it now, and those that will come and overtake it. How fast that work is served is
measured. The prediction is wrong in a way of its own, for no order is kept to the letter; so it is corrected by what
has come of earlier ones, which also says how far it may be trusted.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from longspan.core.estimate import Estimate
from longspan.core.policies.chunked.priority import Floats
from longspan.core.policies.longspan.load import ArrivingLoad

_ROUNDS = 30
_WINDOW_S = 400.0  # arrivals
_RATE_GAIN = 0.02
_SLOWEST, _FASTEST = 0.2, 1.3  # of what the instances can do
_MOST_OVERTAKING = 0.8  # of the time until a request's turn
_REMEMBERED, _ENOUGH = 200, 20
_UNKNOWN = 1.6  # quoted over predicted, as long as nothing came of any
_TOLERANCE = 1.3


class Unserved(NamedTuple):
    """A request without its first token, or one that might come, now. Seconds; times are the clock's.

    left_s: until it ends, alone. work_s: for which it keeps instances from others. key: its rank among those that can
    be in time. due: its deadline. tag: see `SharedProcessor`.
    """

    left_s: float
    work_s: float
    key: float
    due: float
    tag: float


@dataclass(frozen=True, slots=True)
class Kin:
    """Requests of about one size: what arrives of them, and how one stands at its arrival. Seconds.

    work: seconds of work that arrive each second. reach_s: from an arrival to its key.
    """

    work: float
    reach_s: float


class Kinds:
    """The arrivals of late, by size: by the logarithm of their work."""

    def __init__(self) -> None:
        self._loads: dict[int, ArrivingLoad] = {}
        self._reach_s: dict[int, float] = {}

    def arrive(self, now: float, work_s: float, reach_s: float) -> None:
        kind = math.frexp(work_s)[1]
        self._loads.setdefault(kind, ArrivingLoad(_WINDOW_S)).arrive(now, work_s)
        self._reach_s[kind] = reach_s

    def now(self, now: float) -> list[Kin]:
        return [Kin(load.work(now), self._reach_s[kind]) for kind, load in self._loads.items()]


class ServiceRate:
    """Seconds of work that are served in a second, when there is enough of it.

    most: what all instances can do at best. Only iterations tell that did not come to the end of their prompts: the
    others had less to do than they could.
    """

    def __init__(self, most: float) -> None:
        self.most = most
        self._share = 0.0
        self._seen = 0.0

    def note(self, work_s: float, took_s: float) -> None:
        """Note an iteration, and the work in it."""
        self._seen += 1.0
        self._share += max(_RATE_GAIN, 1.0 / self._seen) * (work_s / took_s - self._share)

    def __call__(self) -> float:
        rate = self.most * self._share if self._seen else self.most
        return min(_FASTEST * self.most, max(_SLOWEST * self.most, rate))


class Forecast(NamedTuple):
    """Seconds from now to a request's first token; and how many requests go before it, with how much work."""

    seconds: float
    ahead: int
    ahead_s: float


def time_to_first_token(
    mine: Unserved, others: Floats, coming: Sequence[Kin], rate: float, wait_s: float, now: float
) -> Forecast:
    """Predict the seconds from now to its first token.

    others: in rows the fields of `Unserved`, in columns requests, perhaps with itself. rate: seconds of work served in
    one. wait_s: until what runs now is over.
    """
    ahead, ahead_s, is_late = _work_ahead(mine, others, rate, wait_s, now)
    for _ in range(2):
        until_s = _until(mine, ahead_s, is_late, coming, rate, wait_s, now)
        if is_late or now + until_s <= mine.due:
            break
        is_late = True
    return Forecast(until_s, ahead, ahead_s)


def _work_ahead(mine: Unserved, others: Floats, rate: float, wait_s: float, now: float) -> tuple[int, float, bool]:
    """How many go before it, their seconds of work, and whether it will be late by then."""
    num_before = num_relegated = 0
    before_s = relegated_s = 0.0
    before = others[:, others[2] < mine.key]
    for left_s, work_s, _, due, tag in before[:, np.argsort(before[2], kind="stable")].T.tolist():
        if now + before_s / rate + left_s + wait_s <= due:
            num_before, before_s = num_before + 1, before_s + work_s
        elif tag < mine.tag:
            num_relegated, relegated_s = num_relegated + 1, relegated_s + work_s
    if now + before_s / rate + mine.left_s + wait_s <= mine.due:
        return num_before, before_s, False
    return num_before + num_relegated, before_s + relegated_s, True


def _until(
    mine: Unserved, ahead_s: float, is_late: bool, coming: Sequence[Kin], rate: float, wait_s: float, now: float
) -> float:
    """Its end, with those that come before it and overtake: a fixed point, which is approached from below."""
    if is_late:  # all overtake: it gets what they leave, but no more than it can use
        spare = max((1.0 - _MOST_OVERTAKING) * rate, rate - sum([kin.work for kin in coming]))
        return wait_s + mine.left_s / min(1.0, spare) + ahead_s / spare
    until_s = wait_s + mine.left_s + ahead_s / rate
    for _ in range(_ROUNDS):
        overtaking_s = sum([kin.work * min(until_s, max(0.0, mine.key - now - kin.reach_s)) for kin in coming])
        overtaking_s = min(overtaking_s, _MOST_OVERTAKING * rate * until_s)
        longer_s = wait_s + mine.left_s + (ahead_s + overtaking_s) / rate
        if longer_s - until_s < 1e-3 * until_s:
            break
        until_s = longer_s
    return until_s


class Calibration:
    """What came of earlier predictions, by their class: how much longer it took. Of a class of which little is known,
    what came of all.

    error: of late, the part of the quotes that were not kept.
    """

    def __init__(self) -> None:
        self._ratios: dict[int, deque[float]] = {}
        self._all: deque[float] = deque(maxlen=_REMEMBERED)
        self._broken: deque[bool] = deque(maxlen=_REMEMBERED)

    def estimate(self, predicted_s: float, kind: int) -> Estimate:
        known = self._ratios.get(kind, ())
        ratios = sorted(known if len(known) >= _ENOUGH else self._all)
        if len(ratios) < _ENOUGH:
            return Estimate(predicted_s, _UNKNOWN * predicted_s)
        return Estimate(predicted_s * _quantile(ratios, 0.5), predicted_s * _quantile(ratios, 0.95))

    def learn(self, predicted_s: float, estimate: Estimate, took_s: float, kind: int) -> None:
        ratio = took_s / max(predicted_s, 1e-9)
        self._ratios.setdefault(kind, deque(maxlen=_REMEMBERED)).append(ratio)
        self._all.append(ratio)
        self._broken.append(took_s > max(_TOLERANCE * estimate.quote_s, estimate.quote_s + 1.0))

    def knows(self, kind: int) -> bool:
        """Tell whether enough has come of predictions of this class."""
        return len(self._ratios.get(kind, ())) >= _ENOUGH

    @property
    def error(self) -> float:
        return sum(self._broken) / len(self._broken) if len(self._broken) >= _ENOUGH else 1.0


def _quantile(ascending: Sequence[float], share: float) -> float:
    return ascending[min(len(ascending) - 1, int(share * len(ascending)))]
