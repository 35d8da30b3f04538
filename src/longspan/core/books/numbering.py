"""What is numbered through a whole fleet, however many schedulers it has."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Numbering:
    """The next number of each kind. Schedulers that share one never give the same number twice."""

    batches: int = 0
    migrations: int = 0
    residences: int = 0
