"""When a request will get its first token, as a policy predicts it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Estimate:
    """Seconds from its arrival to its first token: half of the requests get it within `median_s`, 95 of 100 within
    `quote_s`."""

    median_s: float
    quote_s: float
