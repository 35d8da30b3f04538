"""The promise: whoever is admitted gets its first token in bearable time, and who cannot is told at once.

The promise is far behind the deadline: a multiple of what the prompt takes alone (LoongServe's figure 12 has 25 times),
but not less than some seconds. A request that would probably come later is refused, with the time after which to come
again; else it would only wait in vain, and make others late.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from heapq import heappop, heappush

from longspan.core.books.request import Request
from longspan.core.estimate import Estimate
from longspan.core.policies.chunked.memory.pool_shares import LONG, MEDIUM
from longspan.core.policies.longspan.calibration import Calibration, Kind
from longspan.core.policies.longspan.eta import Forecast

BAD_QUOTES = 0.15
"""Where more of the late quotes were not kept, nobody is refused by them."""

LEAST_DOUBT, MOST_DOUBT = 0.03, 0.2
"""Probabilities of missing its promise, beyond which a request is refused: at worst, and while all are kept."""

_FEW = 64
_BROKEN = 0.8
_KEPT = 1.0 + 0.005 * (1.0 / _BROKEN - 1.0)
"""What a broken promise and a kept one do to that: so that one in two hundred is broken in the long run."""


@dataclass(slots=True)
class Promise:
    """What a request was told at its arrival. Seconds; `due` is the clock's. deadline_s: after the arrival. is_open:
    whether it can still be in time, as far as is known. is_given: whether others wait for it where it is at risk.
    is_upset: instances have come or gone, or it waits for what that interrupted: nothing is learned of it."""

    request: Request
    due: float
    deadline_s: float
    forecast: Forecast
    estimate: Estimate
    kind: Kind
    is_open: bool = True
    is_given: bool = False
    is_upset: bool = False

    def teaches(self, kind: Kind) -> bool:
        """Tell whether what comes of it says something of those to come. kind: which the request is of now."""
        return self.kind == kind and not self.is_upset


class Promises:
    """The promises that are open. factor, floor_s: of the promise. margin: of predictions, for refusing by them."""

    def __init__(self, factor: float, floor_s: float, margin: float) -> None:
        self.factor = factor
        self.floor_s = floor_s
        self.margin = margin
        self.calibration = Calibration()
        self.doubt = {False: MOST_DOUBT, True: MOST_DOUBT}  # of tenants within their shares, and beyond
        self._open: dict[str, Promise] = {}
        self._due: list[tuple[float, str]] = []  # a heap; those that are open no more are dropped now and then

    def make(self, request: Request, alone_s: float, deadline_s: float, forecast: Forecast, kind: Kind) -> Promise:
        estimate = self.calibration.estimate(forecast, kind)
        due = request.arrived + max(self.factor * alone_s, self.floor_s, request.service.ttft_s or 0.0)
        promise = self._open[request.id] = Promise(request, due, deadline_s, forecast, estimate, kind)
        heappush(self._due, (due, request.id))
        if len(self._due) > _FEW + 2 * len(self._open):
            self._due = sorted((promise.due, name) for name, promise in self._open.items())
        return promise

    def advance(self, now: float, kind: Callable[[Request], Kind]) -> None:
        """Note which promises are broken by now. kind: as for `relegate`."""
        while self._due and self._due[0][0] < now:
            due, request_id = heappop(self._due)
            promise = self._open.get(request_id)
            if promise is not None and promise.due == due and promise.teaches(kind(promise.request)):
                self._doubt(promise, _BROKEN)

    def late_s(self, request: Request, promise: Promise) -> float:
        """Return by how much the promise may be missed; 0 if it will probably be kept, or too little is known."""
        calibration, due_s = self.calibration, promise.due - request.arrived
        if calibration.error > BAD_QUOTES or not calibration.is_known:
            return 0.0
        if calibration.beyond(due_s, promise.forecast, promise.kind, self.margin) <= self.doubt[promise.kind.is_over]:
            return 0.0
        return max(1.0, self.margin * promise.estimate.quote_s - due_s)

    def within_s(self, request: Request) -> float:
        """Return the seconds from its arrival within which its first token is to come; 0 if that was not given."""
        promise = self._open.get(request.id)
        return promise.due - request.arrived if promise is not None and promise.is_given else 0.0

    def relegate(self, request: Request, kind: Kind) -> None:
        """Note that it will not be in time. kind: which it is now; of one that has changed nothing is learned."""
        promise = self._open.get(request.id)
        if promise is not None and promise.is_open and promise.teaches(kind):
            promise.is_open = False
            self.calibration.turned_out(True, promise.forecast, promise.kind)

    def keep(self, request: Request, now: float, kind: Kind) -> None:
        """Note that it got its first token. kind: as for `relegate`."""
        promise = self._open.pop(request.id, None)
        if promise is not None and promise.teaches(kind):
            if now <= promise.due:
                self._doubt(promise, _KEPT)
            took_s = now - request.arrived
            is_late = took_s > promise.deadline_s
            if promise.is_open:
                self.calibration.turned_out(is_late, promise.forecast, promise.kind)
            self.calibration.learn(promise.forecast, promise.estimate, took_s, is_late, promise.kind)

    def refuse(self, request: Request) -> None:
        """Note that it is refused by its promise. That counts as if it had been in time, so that of its kind so many
        are refused as are needed, and not all from then on."""
        promise = self._open.pop(request.id)
        self.calibration.turned_out(False, promise.forecast, promise.kind)

    def upset(self) -> None:
        """Note that instances have come or gone: those that wait now were promised something by what was before."""
        for promise in self._open.values():
            promise.is_upset = True

    def _doubt(self, promise: Promise, factor: float) -> None:
        is_over = promise.kind.is_over
        self.doubt[is_over] = min(MOST_DOUBT, max(LEAST_DOUBT, factor * self.doubt[is_over]))

    def drop(self, request: Request) -> None:
        """Note that it has ended."""
        self._open.pop(request.id, None)


def size_class(num_prompt_tokens: int) -> int:
    """Return the class whose quotes err alike: short, medium, long."""
    return (num_prompt_tokens > MEDIUM) + (num_prompt_tokens > LONG)
