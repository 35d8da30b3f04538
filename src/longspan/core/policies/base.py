"""The replaceable part that decides."""

from __future__ import annotations

from typing import Protocol

from longspan.core.state import SchedulerState


class Policy(Protocol):
    """Asked once after every event. Acts through `state`, as often as it likes, or not at all.

    It must decide from `state`, `now` and what it remembers alone, and leave nobody waiting for ever:
    whenever no batch runs and a request is alive, it starts something.
    """

    name: str
    needs_cost_model: bool
    """Whether it reads `state.cost_model`: without a measured one, the engine then makes one at its start."""
    keeps_on_one_instance: bool
    """Whether a request's KV always stays on one instance, so that it can be no longer than that instance holds."""

    def schedule(self, state: SchedulerState, now: float) -> None: ...
