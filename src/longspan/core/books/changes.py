"""What a change of the fleet does to requests and work."""

from __future__ import annotations

from dataclasses import dataclass, field

from longspan.core.actions import RunBatch
from longspan.core.books.request import Request


@dataclass(slots=True)
class Changes:
    """Those of one event.

    is_other: instances have joined, are lost, or are leaving. returned: requests that have lost their KV by that, and
    wait again. void: batches that will not complete, of which a policy may have expected something. moved: requests of
    which KV has come away from an instance that is leaving.
    """

    is_other: bool = False
    returned: list[Request] = field(default_factory=list)
    void: list[RunBatch] = field(default_factory=list)
    moved: list[Request] = field(default_factory=list)

    @property
    def are_any(self) -> bool:
        """Tell whether there is anything that a policy may remember wrongly."""
        return bool(self.is_other or self.returned or self.void or self.moved)

    def clear(self) -> None:
        """Begin another event."""
        self.is_other = False
        if self.returned or self.void or self.moved:
            self.returned.clear()
            self.void.clear()
            self.moved.clear()
