"""What a worker has done that may still become void, to be undone then."""

from __future__ import annotations

from collections.abc import Collection

from longspan.core.actions import Segment
from longspan.worker.messages import Migrate, Run
from longspan.worker.model_runner import ModelRunner


class UnsettledWork:
    """Batches and migrations that this worker is through with, by number, while another instance may not be.

    What is undone later is undone first, so that free slots lie as if it had never been done.
    """

    def __init__(self, runner: ModelRunner) -> None:
        self._runner = runner
        self._done: dict[int, Run | Migrate] = {}

    def add(self, command: Run | Migrate) -> None:
        """Remember work that was done, and forget batches that are too old to become void."""
        if isinstance(command, Run):
            for number in [n for n, work in self._done.items() if n < command.oldest and isinstance(work, Run)]:
                del self._done[number]
        self._done[command.number] = command

    def leave(self, command: Run | Migrate) -> None:
        """Undo work that was begun, and not brought to its end. A migration has changed nothing by then."""
        if isinstance(command, Run):
            self._undo_batch(command)

    def settle(self, number: int) -> None:
        """A migration from here has come to its end everywhere."""
        command = self._done.pop(number)
        assert isinstance(command, Migrate)
        if command.action.source == self._runner.instance:
            self._runner.settle(command.action)

    def undo(self, numbers: Collection[int]) -> None:
        """Undo what was done of this; of the rest there is nothing to undo."""
        for number in sorted(self._done.keys() & set(numbers), reverse=True):
            command = self._done.pop(number)
            if isinstance(command, Run):
                self._undo_batch(command)
            elif command.action.target == self._runner.instance:
                for residence, ranges in reversed(command.action.arriving):
                    self._runner.pool.release(residence, ranges)

    def _undo_batch(self, command: Run) -> None:
        """Take back slots in the reverse of the order in which `plan_layout` takes them: single tokens come first."""
        instance = self._runner.instance
        segments = command.batch.segments[::-1]
        for segment in [*[s for s in segments if not _is_lone(s)], *[s for s in segments if _is_lone(s)]]:
            for part in reversed(segment.store):
                if part.instance == instance:
                    self._runner.pool.release(segment.residence, [(part.start, part.end)])
            self._runner.forget(segment.request_id)


def _is_lone(segment: Segment) -> bool:
    return segment.length == 1 and len(segment.compute) == 1
