"""Who goes first.

Shortest remaining first serves most requests in time, and starves the long; earliest deadline first is fair, and falls
like dominoes once one is late, for everybody waits for what is late already. So a request competes while it can still
be in time: by its deadline, put off by a multiple of what is left of it. One that cannot is *hopeless*: it gets what
those leave. Where a first token was promised to it, far later than by its deadline, it goes by that instead, among
those that are hopeless at first. When a last part of that time is left the promise is *at risk*, and it competes once
more: else large prompts that hold memory, and all that can be in time, would make it wait until the promise is broken.
Behind all of these are those to whom nothing is promised, or that cannot be in time for it either, in the order in
which processor sharing would end them, in which nobody starves (Friedman and Henderson, FSP).
"""

from __future__ import annotations

import numpy as np

from longspan.core.books.request import Request
from longspan.core.policies.chunked.priority import N, Standing

HOPELESS = 1e10
"""Seconds, beyond every key of a request that can be in time."""

BROKEN = 2.0 * HOPELESS
"""Seconds, beyond every key of a request that can be in time for its promise."""

INTERRUPTED = -4.0 * HOPELESS
"""The tag of a request that has lost its KV between two tokens: late as it is, it goes before everybody, for somebody
is reading it."""


def rank(standing: Standing[N], weight: float, scale: float, wait_s: float, at_risk_share: float) -> N:
    """Return the key: the lowest goes first.

    weight: of the remaining work, beside the deadline. scale: actual over predicted seconds. wait_s: seconds until an
    iteration that has begun is over. at_risk_share: of the time within which a first token is promised, its last part.
    """
    left = scale * standing.remaining_s + wait_s
    end, due = standing.now + left, standing.arrived + standing.deadline_s
    promised = standing.arrived + standing.promised_s
    at_risk, by_promise = promised - at_risk_share * standing.promised_s, promised + weight * left
    if isinstance(end, np.ndarray):
        kept = np.where(end > at_risk, by_promise, HOPELESS + by_promise)
        late = np.where(end > promised, BROKEN + standing.tag, kept)
        return np.where(end > due, late, due + weight * left)
    if end <= due:
        return due + weight * left
    if end > promised:
        return BROKEN + standing.tag
    return by_promise if end > at_risk else HOPELESS + by_promise


def is_hopeless(standing: Standing[float], scale: float, wait_s: float) -> bool:
    """Tell whether a request cannot be in time any more. One that was interrupted between two tokens has been."""
    end = standing.now + scale * standing.remaining_s + wait_s
    return standing.tag != INTERRUPTED and end > standing.arrived + standing.deadline_s


class SharedProcessor:
    """The clock of processor sharing: it goes by the seconds that each request would have got, were all served alike.

    A request's tag is what the clock shows when it would end: what it showed at its arrival, and its work. processors:
    seconds of work that are served in a second.
    """

    def __init__(self, processors: int) -> None:
        self.processors = processors
        self.shown_s = 0.0
        self._now: float | None = None
        self._tags: dict[str, float] = {}
        self._unserved: set[str] = set()

    def advance(self, now: float) -> None:
        if self._now is not None and self._unserved:
            self.shown_s += (now - self._now) * self.processors / len(self._unserved)
        self._now = now

    def arrive(self, request: Request, work_s: float) -> None:
        self._tags[request.id] = self.shown_s + work_s
        self._unserved.add(request.id)

    def serve(self, request: Request) -> None:
        """Note that it has its first token."""
        self._unserved.discard(request.id)

    def end(self, request: Request) -> None:
        self._tags.pop(request.id, None)
        self._unserved.discard(request.id)

    def tag(self, request: Request) -> float:
        return self._tags[request.id]
