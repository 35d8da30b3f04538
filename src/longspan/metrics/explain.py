"""The story of one request, told from an event log: what ran where, what ran while it waited, and why.

    for line in explain("events.jsonl", "r7").lines(): print(line)

The log is read once, up to the request's end; what is kept of it meanwhile does not grow with its length.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from longspan.errors import ReplayError
from longspan.metrics.event_log import EventLog
from longspan.metrics.request_reader import RequestReader
from longspan.metrics.story import Story

_CHECK_EVERY = 16  # records; who has nothing more to learn then reads no further


def explain(path: Path | str, request_id: str) -> Story:
    """Raises ReplayError if the log cannot be read, or knows no such request."""
    return explain_all(EventLog(path), [request_id])[0]


def explain_all(log: EventLog, request_ids: Sequence[str]) -> list[Story]:
    """Explain several requests, in one go. Raises ReplayError as `explain` does."""
    readers = [RequestReader(request_id) for request_id in request_ids]
    _read(log, readers)
    for reader in readers:
        if reader.arrived is None:
            raise ReplayError(f"{log.path}: no request {reader.request_id!r} arrives in it")
    return [
        Story(reader.request_id, reader.arrived, tuple(reader.finished_chapters()))
        for reader in readers
        if reader.arrived is not None
    ]


def _read(log: EventLog, readers: Sequence[RequestReader]) -> None:
    """Until there is nothing more to learn."""
    expected = 1
    for piece in log.pieces:
        has_gap = piece.number != expected
        expected = piece.number + 1
        for number, record in enumerate(piece):
            for reader in readers:
                if has_gap:
                    reader.skip_to(piece, record.now)
                reader.read(record)
            has_gap = False
            if number % _CHECK_EVERY == 0:
                readers = [reader for reader in readers if not reader.is_done]
                if not readers:
                    return
        if piece.truncated_line is not None:
            expected = -1
