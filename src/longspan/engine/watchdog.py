"""By when each batch that was decided should have ended: tells of one that does not."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from longspan.core.actions import MigrateKV, RunBatch
from longspan.core.costs.batch_shape import BatchShape
from longspan.core.costs.cost_model import CostModel

TIMES_PREDICTED = 10.0
"""A batch may take so many times what the cost model predicts: others may share the machine."""
SECONDS_PER_TOKEN, SECONDS_PER_PAIR = 0.25, 2e-5
"""What a batch may take without a cost model, for each new token, and for each token of context that one attends to:
several times what an 8-billion-parameter model takes on two slow cores."""

Kind = Literal["batch", "migration"]
Key = tuple[Kind, int]


@dataclass(frozen=True, slots=True)
class _Watched:
    """due: when it should have ended, seconds of the engine's clock."""

    instances: Collection[int]
    issued: float
    due: float


class Watchdog:
    """Keeps the batches and migrations under way, each with the time by which it should have ended.

    Work waits for what its instances have begun before, so its time begins when all of that is due. The reader of
    `overdue` is told of the first that is late; work that ends after all is late no more.

    slack_s: seconds that everything may take beyond its share, whatever it is.
    """

    def __init__(self, cost_model: CostModel | None, slack_s: float) -> None:
        self.cost_model = cost_model
        self.slack_s = slack_s
        self._watched: dict[Key, _Watched] = {}
        self._on_instance: defaultdict[int, dict[Key, _Watched]] = defaultdict(dict)

    def begin(self, action: RunBatch | MigrateKV, now: float, shape: BatchShape | None = None) -> float | None:
        """Note that the engine hands the action to its instances at `now`; return its predicted seconds, if there is a
        cost model. shape: of a batch, if it is known."""
        predicted_s = self._predicted_s(action, shape)
        key, instances = _identity(action)
        before = [work.due for instance in instances for work in self._on_instance[instance].values()]
        share_s = _share_s(action) if predicted_s is None else TIMES_PREDICTED * predicted_s
        due = max([now, *before]) + self.slack_s + share_s
        self._watched[key] = work = _Watched(instances, now, due)
        for instance in instances:
            self._on_instance[instance][key] = work
        return predicted_s

    def end(self, kind: Kind, number: int) -> None:
        """Note that all instances have done their part."""
        for instance in self._watched.pop((kind, number)).instances:
            del self._on_instance[instance][kind, number]

    def overdue(self, now: float) -> str | None:
        """Return a sentence about the work that should have ended first, if that has not; None if all is in time."""
        late = [(work.due, key, work) for key, work in self._watched.items() if work.due < now]
        if not late:
            return None
        _, (kind, number), work = min(late, key=lambda item: item[:2])
        where = ", ".join(map(str, sorted(work.instances)))
        return (
            f"{kind} {number} on instances {where} has not ended after {now - work.issued:.0f} s; "
            f"it should have within {work.due - work.issued:.0f} s"
        )

    def _predicted_s(self, action: RunBatch | MigrateKV, shape: BatchShape | None) -> float | None:
        if self.cost_model is None:
            return None
        if isinstance(action, MigrateKV):
            return self.cost_model.migration(action.num_tokens)
        return (shape or BatchShape.of(action)).predict(self.cost_model)


def _share_s(action: RunBatch | MigrateKV) -> float:
    """Seconds that the action may take for its size, of which nothing else is known."""
    if isinstance(action, MigrateKV):
        return SECONDS_PER_TOKEN * action.num_tokens
    tokens = sum(segment.length for segment in action.segments)
    pairs = sum(segment.length * (segment.start + segment.end) / 2 for segment in action.segments)
    return SECONDS_PER_TOKEN * tokens + SECONDS_PER_PAIR * pairs


def _identity(action: RunBatch | MigrateKV) -> tuple[Key, Collection[int]]:
    if isinstance(action, RunBatch):
        return ("batch", action.batch_id), action.group
    return ("migration", action.migration_id), (action.source, action.target)
