"""What is on its way to the instances, or runs there: batches and migrations, each until all of its parts are done."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypeVar

from longspan.core.actions import CancelBatch, MigrateKV, RunBatch
from longspan.core.costs.batch_shape import BatchShape
from longspan.worker.messages import BatchDone
from longspan.worker.sampling_state import SampledToken


@dataclass(slots=True)
class RunningBatch:
    """A batch on its way: which instances have not reported yet; the tokens and the longest time of those that have.

    number: see `InFlight`.
    in_first_stage: instances that have not reported that it left their first stage; none where there is but one.
    predicted_s: what it should take, if that is known.
    """

    batch: RunBatch
    number: int
    missing: set[int]
    in_first_stage: set[int]
    shape: BatchShape
    predicted_s: float | None
    tokens: dict[str, SampledToken] = field(default_factory=dict)
    not_finite: set[str] = field(default_factory=set)
    grammar_errors: dict[str, str] = field(default_factory=dict)
    model_s: float = 0.0

    def add(self, done: BatchDone) -> None:
        """Take what an instance reports of its part."""
        self.missing.discard(done.instance)
        self.tokens.update(done.tokens)
        self.not_finite.update(done.not_finite)
        self.grammar_errors.update(done.grammar_errors)
        self.model_s = max(self.model_s, done.model_s)


@dataclass(slots=True)
class RunningMigration:
    """A migration on its way: which of its two instances have not reported yet. number: see `InFlight`."""

    action: MigrateKV
    number: int
    missing: set[int]


class InFlight:
    """Work on its way, by the scheduler's ids, oldest first.

    Batches and migrations are numbered as one kind of work, in the order in which they are sent: workers, which take
    theirs in that order, tell by the number what is older.
    """

    def __init__(self) -> None:
        self.batches: dict[int, RunningBatch] = {}
        self.migrations: dict[int, RunningMigration] = {}
        self._void: set[tuple[str, int]] = set()
        self._last = 0

    def __bool__(self) -> bool:
        return bool(self.batches or self.migrations)

    def next_number(self) -> int:
        self._last += 1
        return self._last

    def oldest_batch(self) -> int:
        """Return the number of the batch that was sent first of those in flight; of the next one, if there is none."""
        return next((batch.number for batch in self.batches.values()), self._last + 1)

    def batch(self, batch_id: int) -> RunningBatch | None:
        """Return the batch that an instance reports of; None where it has become void, and nobody waits for it."""
        return None if ("batch", batch_id) in self._void else self.batches[batch_id]

    def migration(self, migration_id: int) -> RunningMigration | None:
        """Return the migration that an instance reports of; None likewise."""
        return None if ("migration", migration_id) in self._void else self.migrations[migration_id]

    def cancel(self, action: CancelBatch) -> tuple[tuple[int, ...], list[str]]:
        """Forget what is void. Returns its numbers, and the requests that it was for."""
        self._void.update(("batch", each) for each in action.batch_ids)
        self._void.update(("migration", each) for each in action.migration_ids)
        batches = _pop(self.batches, action.batch_ids)
        migrations = _pop(self.migrations, action.migration_ids)
        names = [segment.request_id for running in batches for segment in running.batch.segments]
        numbers = [*[running.number for running in batches], *[running.number for running in migrations]]
        return tuple(sorted(numbers)), names


Running = TypeVar("Running", RunningBatch, RunningMigration)


def _pop(running: dict[int, Running], ids: Iterable[int]) -> list[Running]:
    return [running.pop(each) for each in ids]
