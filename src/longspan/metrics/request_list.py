"""Which requests a log tells of, in one pass and bounded memory; and which of them an id means."""

from __future__ import annotations

import difflib
import heapq
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from longspan.core.actions import CancelBatch, RefuseRequest, RunBatch, StopRequest
from longspan.core.events import BatchCompleted, Event, RequestAborted, RequestArrived, TokenOutput
from longspan.metrics.event_log import EventLog, LogRecord, Piece

_ENGINE_ID = re.compile(r"((?:(?:chat)?cmpl-|resp_|msg_)(.+))-[0-9a-f]{8}-[0-9]+")
"""What the OpenAI server gives to the engine: the answer's id, with the X-Request-Id; the run's; the choice's."""
_MOST_SUGGESTIONS = 3


@dataclass(slots=True)
class RequestSummary:
    """One request's life, in short. Times are seconds of the log's clock.

    longest_wait_s: none of its batches ran for so long. end: why it ended, or "goes on" where the log ends before.
    """

    request_id: str
    arrived_s: float
    num_prompt_tokens: int
    num_output_tokens: int = 0
    longest_wait_s: float = 0.0
    end: str = "goes on"


@dataclass(slots=True)
class _Life:
    summary: RequestSummary
    idle_since: float | None
    num_batches: int = 0  # that run


class _Lives:
    """All requests that are alive."""

    def __init__(self) -> None:
        self._lives: dict[str, _Life] = {}
        self._batches: dict[int, RunBatch] = {}
        self._now = 0.0

    def skip_to(self, piece: Piece) -> Iterator[RequestSummary]:
        """Those that ended in pieces that are missing."""
        alive = {event.request_id for _, event in piece.requests}
        for request_id in [name for name in self._lives if name not in alive]:
            yield self._end(request_id, "unknown")
        self._batches = {}
        for at, event in piece.requests:
            if event.request_id not in self._lives:
                self._arrive(at, event)
        for action in piece.running:
            if isinstance(action, RunBatch):
                self._issue(action)

    def read(self, record: LogRecord) -> Iterator[RequestSummary]:
        """Those that end with it."""
        self._now = record.now
        yield from self._happen(record.event)
        for action in record.actions:
            match action:
                case RunBatch():
                    self._issue(action)
                case CancelBatch(batch_ids):
                    for batch_id in batch_ids:
                        self._complete(self._batches.pop(batch_id, None))
                case RefuseRequest(request_id) if request_id in self._lives:
                    yield self._end(request_id, "refused")
                case StopRequest(request_id, _, "finished" | "aborted") if request_id in self._lives:
                    yield self._end(request_id, "unknown")

    def _happen(self, event: Event) -> Iterator[RequestSummary]:
        match event:
            case RequestArrived():
                self._arrive(self._now, event)
            case RequestAborted(request_id) if request_id in self._lives:
                yield self._end(request_id, "aborted")
            case BatchCompleted(batch_id, outputs):
                self._complete(self._batches.pop(batch_id, None))
                for output in outputs:
                    yield from self._emit(output)

    def rest(self) -> Iterator[RequestSummary]:
        """Those that go on when the log ends."""
        for request_id in list(self._lives):
            yield self._end(request_id, "goes on")

    def _arrive(self, now: float, event: RequestArrived) -> None:
        summary = RequestSummary(event.request_id, now, event.num_prompt_tokens)
        self._lives[event.request_id] = _Life(summary, now)

    def _issue(self, batch: RunBatch) -> None:
        self._batches[batch.batch_id] = batch
        for segment in batch.segments:
            life = self._lives.get(segment.request_id)
            if life is not None:
                self._stop_waiting(life)
                life.num_batches += 1

    def _complete(self, batch: RunBatch | None) -> None:
        for segment in batch.segments if batch is not None else ():
            life = self._lives.get(segment.request_id)
            if life is not None:
                life.num_batches -= 1
                if life.num_batches == 0:
                    life.idle_since = self._now

    def _emit(self, output: TokenOutput) -> Iterator[RequestSummary]:
        life = self._lives.get(output.request_id)
        if life is not None:
            life.summary.num_output_tokens += 1
            if output.finish_reason is not None:
                yield self._end(output.request_id, output.finish_reason)

    def _stop_waiting(self, life: _Life) -> None:
        if life.idle_since is not None:
            life.summary.longest_wait_s = max(life.summary.longest_wait_s, self._now - life.idle_since)
            life.idle_since = None

    def _end(self, request_id: str, end: str) -> RequestSummary:
        life = self._lives.pop(request_id)
        self._stop_waiting(life)
        life.summary.end = end
        return life.summary


def list_requests(log: EventLog) -> Iterator[RequestSummary]:
    """Yield all of them, in the order in which they end; then those that go on. Raises ReplayError."""
    lives = _Lives()
    expected = 1
    for piece in log.pieces:
        if piece.number != expected:
            yield from lives.skip_to(piece)
        expected = piece.number + 1
        for record in piece:
            yield from lives.read(record)
    yield from lives.rest()


def find_requests(log: EventLog, given: str) -> list[str]:
    """Return the engine's ids of the request that is meant, in order of arrival: one, or one for each of its choices.

    given: an engine's id; the id of an answer (cmpl-..., chatcmpl-..., resp_..., msg_...); an X-Request-Id; or how any
        of them begins.
    """
    return matching(request_ids(log), given)


def matching(request_ids: Iterable[str], given: str) -> list[str]:
    """Return those of the ids, in order of arrival, that `find_requests` would."""
    own: list[str] = []
    beginning: list[str] = []
    for request_id in request_ids:
        if request_id == given:
            return [request_id]
        found = _ENGINE_ID.fullmatch(request_id)
        run = request_id.rpartition("-")[0]
        if given == run or (found is not None and given in found.groups()):
            own.append(request_id)
        elif not own and (request_id.startswith(given) or (found is not None and found[2].startswith(given))):
            beginning.append(request_id)
    return own or beginning


def client_id(request_id: str) -> str:
    """Return the X-Request-Id of the engine's request; its own id, if it has none."""
    found = _ENGINE_ID.fullmatch(request_id)
    return request_id if found is None else found[2]


def suggest(log: EventLog, given: str) -> list[str]:
    """Return ids in the log that look much like it, best first."""

    def likeness(request_id: str) -> float:
        found = _ENGINE_ID.fullmatch(request_id)
        names = (request_id, *(found.groups() if found is not None else ()))
        return max(difflib.SequenceMatcher(None, given, name, autojunk=False).ratio() for name in names)

    best = heapq.nlargest(_MOST_SUGGESTIONS, ((likeness(name), name) for name in request_ids(log)))
    return [name for score, name in best if score > 0.6]


def request_ids(log: EventLog) -> Iterator[str]:
    """Yield ids in order of arrival."""
    expected = 1
    for piece in log.pieces:
        if piece.number != expected:
            yield from (event.request_id for _, event in piece.requests)
        expected = piece.number + 1
        yield from _arrivals(piece)


def _arrivals(records: Iterable[LogRecord]) -> Iterator[str]:
    for record in records:
        if isinstance(record.event, RequestArrived):
            yield record.event.request_id
