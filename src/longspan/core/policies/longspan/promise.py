"""The promise: whoever is admitted gets its first token in bearable time, and who cannot is told at once.

The promise is far behind the deadline: a multiple of what the prompt takes alone (LoongServe's figure 12 has 25 times),
but not less than some seconds. A request whose quote is beyond it is refused, with the time after which to come again;
else it would only wait in vain, and make others late.
"""

from __future__ import annotations

from dataclasses import dataclass

from longspan.core.books.request import Request
from longspan.core.estimate import Estimate
from longspan.core.policies.longspan.eta import Calibration

BAD_QUOTES = 0.15
"""Where more of the late quotes were not kept, nobody is refused by them."""

SHORT, MEDIUM = 8192, 65_536
"""Tokens of the longest short and medium prompts."""


@dataclass(slots=True)
class Promise:
    """What one request was told at its arrival. Seconds; `due` is the clock's."""

    due: float
    predicted_s: float
    estimate: Estimate
    kind: int


class Promises:
    """The promises that are open. factor, floor_s: of the promise. margin: of a quote, for refusing by it."""

    def __init__(self, factor: float, floor_s: float, margin: float) -> None:
        self.factor = factor
        self.floor_s = floor_s
        self.margin = margin
        self.calibration = Calibration()
        self._open: dict[str, Promise] = {}

    def make(self, request: Request, alone_s: float, predicted_s: float, kind: int) -> Promise:
        estimate = self.calibration.estimate(predicted_s, kind)
        due = request.arrived + max(self.factor * alone_s, self.floor_s, request.service.ttft_s or 0.0)
        promise = self._open[request.id] = Promise(due, predicted_s, estimate, kind)
        return promise

    def late_s(self, request: Request, promise: Promise) -> float:
        """Return by how much the promise will probably be missed; 0 if it can be kept, or too little is known."""
        if self.calibration.error > BAD_QUOTES or not self.calibration.knows(promise.kind):
            return 0.0
        return max(0.0, request.arrived + self.margin * promise.estimate.median_s - promise.due)

    def keep(self, request: Request, now: float) -> None:
        """Note that it got its first token."""
        promise = self._open.pop(request.id, None)
        if promise is not None:
            took_s = now - request.arrived
            self.calibration.learn(promise.predicted_s, promise.estimate, took_s, promise.kind)

    def drop(self, request: Request) -> None:
        """Note that it has ended, or was refused."""
        self._open.pop(request.id, None)


def size_class(num_prompt_tokens: int) -> int:
    """Return the class whose quotes err alike: short, medium, long."""
    return (num_prompt_tokens > SHORT) + (num_prompt_tokens > MEDIUM)
