"""Requests as a page shows them: where each is, what it was told, how long it took; and what else there is to tell."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from longspan.core.policies.longspan.promise import size_class

CLASSES = ("short", "medium", "long")
"""Of prompts, as the metrics have them."""

Quote = tuple[float, float, float, float]
"""median_s, quote_s, promised_s, deadline_s: see `Life`."""


@dataclass(slots=True)
class Life:
    """One request. Times are seconds of the events' clock.

    number: from 1, by arrival; its colour. computed: tokens that have KV, found or computed. in_flight: batches.
    started: when its first batch was issued. quote: median_s, quote_s, promised_s, deadline_s from its arrival, if that
    was predicted.
    """

    number: int
    id: str
    arrived: float
    prompt: int
    max_tokens: int
    priority: int = 0
    tenant: str | None = None
    computed: int = 0
    found: int = 0
    output: int = 0
    in_flight: int = 0
    preemptions: int = 0
    started: float | None = None
    first_token: float | None = None
    last_token: float | None = None
    quote: Quote | None = None
    ended: str | None = None

    @property
    def size(self) -> int:
        """Return its class's place in `CLASSES`."""
        return size_class(self.prompt)

    @property
    def expected(self) -> float:
        """Return when half of such requests have their first token; where nobody predicts, when it came."""
        return self.arrived + (0.0 if self.quote is None else self.quote[0])

    @property
    def ttft_s(self) -> float | None:
        """Return the seconds from its arrival to its first token."""
        return None if self.first_token is None else self.first_token - self.arrived

    @property
    def tpot_s(self) -> float | None:
        """Return the mean seconds from token to token; None of fewer than two."""
        if self.first_token is None or self.last_token is None or self.output < 2:
            return None
        return (self.last_token - self.first_token) / (self.output - 1)

    def emit(self, now: float, tokens: int = 1) -> None:
        """Note a token, or the last of several."""
        self.output += tokens
        self.last_token = now
        if self.first_token is None:
            self.first_token = now


@dataclass(frozen=True, slots=True)
class News:
    """Something to tell at once: what, of which instance or request (its id), and in words what more there is."""

    at: float
    what: str
    instance: int | None = None
    request: str | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Known:
    """What the books do not tell of a request that was there before: times, and what was predicted at its arrival."""

    started: float | None = None
    first_token: float | None = None
    last_token: float | None = None
    quote: Quote | None = None


@dataclass(slots=True)
class Totals:
    """Counts since the beginning. answered: requests that came to their own end; turned_away: refused, or aborted."""

    prompt_tokens: int = 0
    output_tokens: int = 0
    answered: int = 0
    turned_away: int = 0
    preemptions: int = 0
    migrations: int = 0


@dataclass(slots=True)
class Latencies:
    """Of each class, what was measured in the last so many seconds."""

    window_s: float
    _found: tuple[deque[tuple[float, float]], ...] = field(
        default_factory=lambda: tuple(deque(maxlen=MOST_MEASURED) for _ in CLASSES)
    )

    def add(self, size: int, now: float, seconds: float) -> None:
        """Take one of a class."""
        self._found[size].append((now, seconds))

    def precede(self, before: Latencies) -> None:
        """Take in what was measured before."""
        for found, earlier in zip(self._found, before._found, strict=True):
            found.extendleft(list(reversed(earlier))[: MOST_MEASURED - len(found)])

    def percentiles(self, now: float) -> Iterator[tuple[float | None, float | None]]:
        """Yield the median and the 95th percentile of each class, None where there was nothing."""
        for found in self._found:
            while found and found[0][0] < now - self.window_s:
                found.popleft()
            values = sorted(seconds for _, seconds in found)
            yield percentile(values, 0.5), percentile(values, 0.95)


MOST_MEASURED = 1000


def percentile(ordered: Sequence[float], share: float) -> float | None:
    """Return the value that this share of the values does not exceed; None of none."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else None
