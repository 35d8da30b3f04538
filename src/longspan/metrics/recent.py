"""The engine's last events and decisions, to tell stories from while it runs."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from msgspec.structs import replace

from longspan.core.actions import Action, CancelBatch, MigrateKV, RefuseRequest, RunBatch
from longspan.core.decision import Decision
from longspan.core.events import BatchCompleted, Event, KVMigrated, RequestAborted, RequestArrived
from longspan.metrics.event_log import LogRecord
from longspan.metrics.request_list import matching
from longspan.metrics.request_reader import Opening, RequestReader
from longspan.metrics.story import Story

MOST = 100_000
"""Segments of batches, events and other actions that are kept, all together: some fifty megabytes."""
_SO_FAR = "not yet: it is told up to now"
_AT_A_TIME = 64  # records that are read before others have a turn


@dataclass(frozen=True, slots=True)
class _Opening:
    """What was under way when the first record that is kept came; as a piece of an event log has it."""

    requests: tuple[tuple[float, RequestArrived], ...]
    running: tuple[Action, ...]


class Recent:
    """The last records, up to a size, and what was under way before them.

    most: how much is kept, see `MOST`.
    """

    def __init__(self, most: int = MOST) -> None:
        self.most = most
        self.size = 0
        self._records: deque[tuple[int, LogRecord]] = deque()
        self._requests: dict[str, tuple[float, RequestArrived]] = {}
        self._batches: dict[int, RunBatch] = {}
        self._migrations: dict[int, MigrateKV] = {}

    def __len__(self) -> int:
        """Return how many records are kept."""
        return len(self._records)

    def add(self, now: float, event: Event, actions: Sequence[Action], why: Sequence[Decision]) -> None:
        """Keep one more, and drop old ones for it."""
        if isinstance(event, RequestArrived) and event.prefix_keys:
            event = replace(event, prefix_keys=event.prefix_keys[:1])  # that there are any is all that stories ask
        size = 1 + sum([len(action.segments) if isinstance(action, RunBatch) else 1 for action in actions])
        self._records.append((size, LogRecord(0, now, event, tuple(actions), tuple(why))))
        self.size += size
        while self.size > self.most and len(self._records) > 1:
            size, record = self._records.popleft()
            self.size -= size
            self._pass(record)

    def all(self) -> tuple[Opening, list[LogRecord]]:
        """Return what was under way when the first record came, and the records."""
        opening = _Opening(tuple(self._requests.values()), (*self._batches.values(), *self._migrations.values()))
        return opening, [record for _, record in self._records]

    def find(self, given: str) -> list[str]:
        """Return the engine's ids of the request that is meant, as `find_requests` does in a log."""
        return matching(self._ids(), given)

    def tell(self, request_id: str) -> Generator[None, None, Story | None]:
        """Return the request's story so far, None if it is not known; yield now and then, so that others have a
        turn: what comes meanwhile is no part of it."""
        opening, records = self.all()
        reader = RequestReader(request_id)
        if records and (opening.requests or opening.running):
            reader.skip_to(opening, records[0].now)
        for number, record in enumerate(records, start=1):
            reader.read(record)
            if reader.is_done:
                break
            if number % _AT_A_TIME == 0:
                yield
        if reader.arrived is None:
            return None
        return Story(request_id, reader.arrived, tuple(reader.finished_chapters(_SO_FAR)))

    def _ids(self) -> Iterator[str]:
        arrived = (record.event for _, record in self._records if isinstance(record.event, RequestArrived))
        return (event.request_id for event in chain((event for _, event in self._requests.values()), arrived))

    def _pass(self, record: LogRecord) -> None:
        """Note what the record leaves under way."""
        match record.event:
            case RequestArrived(request_id):
                self._requests[request_id] = (record.now, record.event)
            case RequestAborted(request_id):
                self._requests.pop(request_id, None)
            case KVMigrated(migration_id):
                self._migrations.pop(migration_id, None)
            case BatchCompleted(batch_id, outputs):
                self._batches.pop(batch_id, None)
                for output in outputs:
                    if output.finish_reason is not None:
                        self._requests.pop(output.request_id, None)
        for action in record.actions:
            self._begin(action)

    def _begin(self, action: Action) -> None:
        match action:
            case RunBatch():
                self._batches[action.batch_id] = action
            case MigrateKV():
                self._migrations[action.migration_id] = action
            case RefuseRequest(request_id):
                self._requests.pop(request_id, None)
            case CancelBatch(batch_ids, migration_ids):
                for batch_id in batch_ids:
                    self._batches.pop(batch_id, None)
                for migration_id in migration_ids:
                    self._migrations.pop(migration_id, None)
