"""When a request will get its first token, as a policy predicts it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Estimate:
    """Seconds from its arrival to its first token: half of the requests get it within `median_s`, 95 of 100 within
    `quote_s`. ahead: requests that get theirs before it; None: nobody can say."""

    median_s: float
    quote_s: float
    ahead: int | None = None
