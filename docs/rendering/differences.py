"""Why ratios in simulation are far from the papers': sentences for the cells that differ by more than 25 %."""

from __future__ import annotations

LOONGSERVE: dict[tuple[str, ...], str] = {}
"""(case, over, metric), (case, over), or (over,) -> why."""

MEDHA: dict[str, str] = {}
"""What is compared -> why."""
