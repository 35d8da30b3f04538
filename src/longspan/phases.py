"""Starting an engine, step by step: what it tells its caller. It prints nothing itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Phase:
    """A step of starting up, or how far one is; the next phase begins where this one ends.

    text: what is being done, such as "loading weights on 2 workers". done, total: how far, in whatever `unit` says
    ("bytes", else a plain count); a total of 0 is a step that cannot say how far it is. is_last: the engine is ready.
    """

    text: str
    done: int = 0
    total: int = 0
    unit: str = ""
    is_last: bool = False

    @property
    def share(self) -> float | None:
        """How much of it is done, 0 to 1; None where that is not known."""
        return min(1.0, self.done / self.total) if self.total > 0 else None


OnPhase = Callable[[Phase], None]
"""Called from any thread, in order for each phase; it returns at once, and raises nothing."""


def ignore(phase: Phase) -> None:
    """Do nothing: an `OnPhase` for a start that is not shown."""
