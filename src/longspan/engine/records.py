"""What happened, for all who read along: the event log, stories, the pages of those who look on.

They read some dozens of records at a time. One at a time, between two iterations, their code and data would be out of
the processor's caches at every record, and cost five times as much.
"""

from __future__ import annotations

from collections.abc import Sequence

from longspan.core.actions import Action
from longspan.core.decision import Decision
from longspan.core.events import Event
from longspan.engine.observer.messages import Record
from longspan.engine.observer.observation import Observation
from longspan.metrics.recent import Recent

MOST_UNREAD = 64


class Records:
    """The calls of one scheduler, in order.

    observation: of all of them, where they are written or shown. Nobody who reads them raises anything.
    """

    def __init__(self, observation: Observation | None = None) -> None:
        self.observation = Observation() if observation is None else observation
        self._recent = Recent()
        self._unread: list[Record] = []

    @property
    def recent(self) -> Recent:
        """Return the last ones, up to now."""
        self.catch_up()
        return self._recent

    def add(self, now: float, event: Event, actions: Sequence[Action], why: Sequence[Decision]) -> None:
        """Take one more, of which nothing is changed from now on."""
        self._unread.append((now, event, actions, why))
        if len(self._unread) >= MOST_UNREAD:
            self.catch_up()

    def catch_up(self) -> None:
        """Have everybody read what there is."""
        if not self._unread:
            return
        new, self._unread = self._unread, []
        self.observation.read(new)
        for record in new:
            self._recent.add(*record)

    def flush(self) -> None:
        """Catch up, and have the event log written soon."""
        self.catch_up()
        self.observation.hurry()

    def close(self) -> None:
        """Catch up, and write what is left of the event log; may take as long as the disk does."""
        self.catch_up()
        self.observation.close()
