"""What ran while a request waited, and why it was ahead."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from longspan.core.actions import MigrateKV, RunBatch
from longspan.metrics.reasons import Rank, why_first
from longspan.metrics.story import Delayer

MOST_DELAYERS = 3


@dataclass(slots=True, eq=False)
class Ran:
    """A batch or a migration that was issued.

    begin: known once it has left the first pipeline stage. end: when it is done.
    """

    action: RunBatch | MigrateKV
    issued: float
    has_left_first_stage: bool = False
    begin: float = 0.0
    end: float = 0.0

    @property
    def instances(self) -> tuple[int, ...]:
        action = self.action
        return action.group if isinstance(action, RunBatch) else (action.source, action.target)


@dataclass(slots=True)
class Wait:
    """It waits or pauses since `start`; until `end`, once that is known.

    where: instances that matter; None: all. pending: work that began before the end, perhaps, and is not done.
    seconds, volume: by request, of those that ran meanwhile. prompts: by request, when its prompt did first, and its
    rank.
    """

    start: float
    where: frozenset[int] | None
    end: float | None = None
    pending: set[Ran] = field(default_factory=set)
    seconds: dict[str, float] = field(default_factory=dict)
    volume: dict[str, float] = field(default_factory=dict)
    prompts: dict[str, tuple[float, Rank]] = field(default_factory=dict)

    def add(self, ran: Ran, ranks: Mapping[str, Rank]) -> None:
        """ranks: of requests that are alive."""
        end = ran.end if self.end is None else min(self.end, ran.end)
        overlap = end - max(self.start, ran.begin)
        if overlap <= 0 or (self.where is not None and self.where.isdisjoint(ran.instances)):
            return
        for request_id in requests_of(ran.action):
            self.seconds[request_id] = self.seconds.get(request_id, 0.0) + overlap
            self.volume[request_id] = self.volume.get(request_id, 0.0) + overlap * len(ran.instances)
        for request_id in prompts_of(ran.action) if ran.issued >= self.start else ():  # else it was there already
            if request_id in ranks:
                self.prompts.setdefault(request_id, (ran.issued, ranks[request_id]))

    def delayers(self, request_id: str, mine: Rank) -> tuple[Delayer, ...]:
        """All but the request itself, that took most first. mine: its rank."""
        others = [name for name in self.volume if name != request_id]
        most = sorted(others, key=lambda name: (-self.volume[name], name))[:MOST_DELAYERS]
        return tuple(Delayer(name, self.seconds[name], self.volume[name], self._why(name, mine)) for name in most)

    def _why(self, request_id: str, mine: Rank) -> str:
        """Why its prompt was ahead."""
        if request_id not in self.prompts:
            return ""
        at, rank = self.prompts[request_id]
        return why_first(rank, mine, at)


def requests_of(action: RunBatch | MigrateKV) -> list[str]:
    if isinstance(action, MigrateKV):
        return [action.request_id] if action.request_id else []
    return [segment.request_id for segment in action.segments]


def prompts_of(action: RunBatch | MigrateKV) -> list[str]:
    """Those of which a part is computed, other than a token that was generated."""
    if isinstance(action, MigrateKV):
        return []
    return [segment.request_id for segment in action.segments if segment.length > 1 or segment.start == 0]
