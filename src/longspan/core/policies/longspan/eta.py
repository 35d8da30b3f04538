"""When a request will get its first token: the policy's own order, played forward.

Ahead of it are those that go before it now, and those that will come and overtake it. How fast that work is served is
measured. There are two predictions: of a request that competes, and of one that turns out to be hopeless, and gets what
others leave. Each is wrong in a way of its own, for no order is kept to the letter; calibration.py corrects them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from longspan.core.policies.chunked.priority import Floats
from longspan.core.policies.longspan.load import ArrivingLoad

_ROUNDS = 30
_WINDOW_S = 400.0  # arrivals
_MOST_OVERTAKING = 0.8  # of the time until a request's turn


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


class Forecast(NamedTuple):
    """When a request will get its first token, and how many requests go before it, with how much work.

    competing_s: seconds from now, should it be in time. relegated_s: should it turn out not to be. is_late: whether it
    cannot be, as it looks.
    """

    ahead: int
    ahead_s: float
    competing_s: float
    relegated_s: float
    is_late: bool

    @property
    def seconds(self) -> float:
        return self.relegated_s if self.is_late else self.competing_s

    def later(self, seconds: float) -> Forecast:
        """Return the same, so much later."""
        return self._replace(competing_s=self.competing_s + seconds, relegated_s=self.relegated_s + seconds)


def time_to_first_token(
    mine: Unserved, others: Floats, coming: Sequence[Kin], rate: float, wait_s: float, now: float
) -> Forecast:
    """Predict the seconds from now to its first token.

    others: in rows the fields of `Unserved`, in columns requests, perhaps with itself. rate: seconds of work served in
    one. wait_s: until what runs now is over.
    """
    ahead = _work_ahead(mine, others, rate, wait_s, now)
    relegated_s = _until(mine, ahead.relegated_s, True, coming, rate, wait_s, now)
    until_s = _until(mine, ahead.before_s, False, coming, rate, wait_s, now)
    if now + ahead.before_s / rate + mine.left_s + wait_s > mine.due or now + until_s > mine.due:
        return Forecast(ahead.num_relegated, ahead.relegated_s, until_s, relegated_s, True)
    return Forecast(ahead.num_before, ahead.before_s, until_s, max(until_s, relegated_s), False)


class _Ahead(NamedTuple):
    """Requests, and seconds of work: what goes before it if it competes, and if it is relegated."""

    num_before: int
    before_s: float
    num_relegated: int
    relegated_s: float


def _work_ahead(mine: Unserved, others: Floats, rate: float, wait_s: float, now: float) -> _Ahead:
    """Go through the others by their keys: each is late behind the work before it, or adds to that.

    Those that are late behind none at all, as most are in a long queue, need no walk.
    """
    others = others[:, np.argsort(others[2], kind="stable")]
    late = now + others[0] + wait_s > others[3]
    able = np.flatnonzero(~late)
    num_before = num_after = 0
    before_s = after_s = ahead_s = 0.0
    my_key, my_tag, too_late = mine.key, mine.tag, list[int]()
    for place, left_s, work_s, key, due, tag in zip(able.tolist(), *others[:, able].tolist(), strict=True):
        if now + ahead_s + left_s + wait_s > due:
            too_late.append(place)
        elif key < my_key:
            num_before, before_s = num_before + 1, before_s + work_s
            ahead_s = (before_s + after_s) / rate
        elif tag != my_tag:
            num_after, after_s = num_after + 1, after_s + work_s
            ahead_s = (before_s + after_s) / rate
    late[too_late] = True
    relegated = others[1, late & (others[4] < mine.tag)]
    num_relegated = num_before + num_after + len(relegated)
    relegated_s = before_s + after_s + (float(np.add.accumulate(relegated)[-1]) if len(relegated) else 0.0)
    return _Ahead(num_before, before_s, num_relegated, relegated_s)


def _until(
    mine: Unserved, ahead_s: float, is_late: bool, coming: Sequence[Kin], rate: float, wait_s: float, now: float
) -> float:
    """Its end, with those that come before it and overtake: a fixed point, which is approached from below."""
    if is_late:  # all overtake: it gets what they leave, but no more than it can use
        spare = max((1.0 - _MOST_OVERTAKING) * rate, rate - sum([kin.work for kin in coming]))
        return wait_s + mine.left_s / min(1.0, spare) + ahead_s / spare
    until_s = wait_s + mine.left_s + ahead_s / rate
    overtaking = [(kin.work, max(0.0, mine.key - now - kin.reach_s)) for kin in coming]  # each only so long
    for _ in range(_ROUNDS):
        overtaking_s = sum([work * min(until_s, longest_s) for work, longest_s in overtaking])
        overtaking_s = min(overtaking_s, _MOST_OVERTAKING * rate * until_s)
        longer_s = wait_s + mine.left_s + (ahead_s + overtaking_s) / rate
        if longer_s - until_s < 1e-3 * until_s:
            break
        until_s = longer_s
    return until_s
