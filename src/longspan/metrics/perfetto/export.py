"""From an event log to a trace, in one pass: what is kept meanwhile does not grow with the log's length."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import zip_longest
from typing import TextIO

from longspan.core.actions import Action, CancelBatch, FreeKV, MigrateKV, RefuseRequest, RunBatch, StopRequest
from longspan.core.costs.batch_shape import BatchShape
from longspan.core.events import (
    BatchCompleted,
    Event,
    FirstStageFree,
    InstanceJoined,
    InstanceLost,
    KVMigrated,
    RequestAborted,
    RequestArrived,
)
from longspan.metrics.event_log import EventLog, LogRecord, Piece
from longspan.metrics.kv_slots import KVSlots
from longspan.metrics.perfetto.request_track import RequestTrack
from longspan.metrics.perfetto.tracks import INSTANCES, Lanes, TraceWriter

_LANES_EACH = 1000  # numbers of tracks that an instance has


def export_trace(log: EventLog, out: TextIO) -> int:
    """Write the whole log as a trace, and return how many requests are in it.

    Instances: a slice for each batch and migration, from when it could begin; with pipeline stages a batch has one
    until it leaves the first, and one behind, on another track. Requests: a track each. Counters: requests that wait,
    and taken KV slots of each instance, which begin anew behind a missing piece. Raises ReplayError: the log is broken.
    """
    export: _Export | None = None
    expected = 1
    for piece in log.pieces:
        has_gap, expected = piece.number != expected, piece.number + 1
        for record in piece:
            if export is None:
                export = _Export(TraceWriter(out, record.now), log.config.num_instances)
            if has_gap:
                export.skip_to(piece, record.now)
                has_gap = False
            export.read(record)
        if piece.truncated_line is not None:
            expected = -1
    if export is None:
        export = _Export(TraceWriter(out, 0.0), log.config.num_instances)
    export.close()
    return export.num_requests


@dataclass(slots=True)
class _Running:
    action: RunBatch | MigrateKV
    issued: float
    stage_begun: float | None = None  # once it has left the first stage: when it began, and when it left
    left: float = 0.0

    @property
    def instances(self) -> tuple[int, ...]:
        return self.action.group if isinstance(self.action, RunBatch) else (self.action.source, self.action.target)


class _Export:
    def __init__(self, out: TraceWriter, num_instances: int) -> None:
        self.out = out
        self.num_requests = 0
        self._now = 0.0
        self._slots = KVSlots()
        self._free_at: dict[int, float] = {}
        self._later: list[Lanes] = []
        self._batches: dict[int, _Running] = {}
        self._migrations: dict[int, _Running] = {}
        self._alive: dict[str, tuple[RequestTrack, bool]] = {}  # and whether its KV may be found
        self._waiting: set[str] = set()
        self._told: tuple[int, ...] = ()
        for number in range(num_instances):
            self._track(number)

    def read(self, record: LogRecord) -> None:
        self._now = record.now
        self._happen(record.event)
        for action in record.actions:
            self._act(action)
        told = (len(self._waiting), *[self._slots.taken(number) for number in range(len(self._later))])
        if told != self._told:
            self._count(told)

    def skip_to(self, piece: Piece, now: float) -> None:
        """What was between is missing. What runs at `now` is taken for begun then."""
        self._now = now
        alive = {event.request_id for _, event in piece.requests}
        for request_id in [name for name in self._alive if name not in alive]:
            self._end(request_id, "ended in a piece that is missing")
        self._batches, self._migrations, self._free_at = {}, {}, {}
        self._slots = KVSlots()
        for at, event in piece.requests:
            if event.request_id not in self._alive:
                self._arrive(at, event)
        for action in piece.running:
            self._act(action)

    def close(self) -> None:
        """What goes on when the log ends is cut there."""
        for running in [*self._batches.values(), *self._migrations.values()]:
            self._finish(running, "cut")
        for request_id in list(self._alive):
            self._end(request_id, "the log ends")
        self.out.close()

    def _happen(self, event: Event) -> None:
        match event:
            case RequestArrived():
                self._arrive(self._now, event)
            case RequestAborted(request_id):
                self._cut_off(request_id)
                self._end(request_id, "aborted")
            case FirstStageFree(batch_id):
                self._leave_first_stage(self._batches.get(batch_id))
            case KVMigrated(migration_id):
                self._end_move(self._migrations.pop(migration_id, None))
            case InstanceLost() | InstanceJoined():
                self._change_fleet(event)
            case BatchCompleted(batch_id, outputs):
                self._finish(self._batches.pop(batch_id, None))
                for output in outputs:
                    if output.finish_reason is not None:
                        self._end(output.request_id, f"ended: {output.finish_reason}")

    def _act(self, action: Action) -> None:
        match action:
            case RunBatch():
                self._batches[action.batch_id] = _Running(action, self._now)
                for segment in action.segments:
                    self._slots.store(segment)
                    self._waiting.discard(segment.request_id)
            case MigrateKV():
                self._slots.begin_move(action)
                self._migrations[action.migration_id] = _Running(action, self._now)
            case FreeKV():
                self._slots.free(action)
            case CancelBatch():
                self._void(action)
            case StopRequest(request_id, _, reason):
                self._slots.release(request_id)
                if reason == "preempted" and request_id in self._alive:
                    self._alive[request_id][0].preempt(self.out, self._now)
                    self._waiting.add(request_id)
            case RefuseRequest(request_id):
                self._end(request_id, "refused")

    def _change_fleet(self, event: InstanceLost | InstanceJoined) -> None:
        instance = event.instance
        for number in range(len(self._later), instance + 1):  # a new one's number is the next
            self._track(number)
        if isinstance(event, InstanceLost):
            self._slots.lose(instance)
        what = "lost" if isinstance(event, InstanceLost) else "joins"
        self.out.instant(INSTANCES, _LANES_EACH * instance, what, self._now, {})

    def _track(self, number: int) -> None:
        self._later.append(Lanes(_LANES_EACH * number + 1))
        self.out.track(INSTANCES, _LANES_EACH * number, f"instance {number}")

    def _end_move(self, running: _Running | None) -> None:
        if running is not None and isinstance(running.action, MigrateKV):
            self._slots.end_move(running.action)
        self._finish(running)

    def _void(self, action: CancelBatch) -> None:
        """Work ends for nothing, and what it stored is undone, the last first."""
        void = [self._batches.pop(number, None) for number in action.batch_ids]
        void += [self._migrations.pop(number, None) for number in action.migration_ids]
        for running in reversed(void):
            match None if running is None else running.action:
                case RunBatch(segments=segments):
                    for segment in reversed(segments):
                        self._slots.take_back(segment)
                case MigrateKV() as move:
                    self._slots.cancel_move(move)
        for running in void:
            self._finish(running, "void")

    def _arrive(self, now: float, event: RequestArrived) -> None:
        track = RequestTrack.arrive(self.out, self.num_requests, now, event)
        self._alive[event.request_id] = track, len(event.prefix_keys) > 0
        self.num_requests += 1
        self._waiting.add(event.request_id)

    def _end(self, request_id: str, why: str) -> None:
        self._waiting.discard(request_id)
        if (known := self._alive.pop(request_id, None)) is not None:
            known[0].end(self.out, self._now, why)

    def _cut_off(self, request_id: str) -> None:
        """It is aborted: what of it runs ran until now, for this request."""
        if (known := self._alive.get(request_id)) is None:
            return
        busy: set[int] = set()
        for running in self._batches.values():
            is_queued = not busy.isdisjoint(running.instances)  # behind another, so it has yet to begin
            busy.update(running.instances if running.stage_begun is None else ())
            for segment in running.action.segments if isinstance(running.action, RunBatch) else ():
                begun = self._begun(running)
                if segment.request_id == request_id and begun < self._now and not is_queued:
                    known[0].work(self.out, begun, self._now, segment, known[1])

    def _begun(self, running: _Running) -> float:
        """It began when its instances were done with what they had begun before."""
        if running.stage_begun is not None:
            return running.stage_begun
        return max([running.issued, *(self._free_at.get(number, running.issued) for number in running.instances)])

    def _leave_first_stage(self, running: _Running | None) -> None:
        """Its instances may begin something else."""
        if running is None or running.stage_begun is not None:
            return
        running.stage_begun = self._begun(running)
        running.left = self._now
        for number in running.instances:
            self._free_at[number] = self._now

    def _finish(self, running: _Running | None, how: str = "") -> None:
        """running: None: it began before the log. how: "cut": the log ends; "void": for nothing; else it is done."""
        if running is None:
            return
        self._leave_first_stage(running)
        begun, end = running.stage_begun or 0.0, self._now
        name, told = _described(running.action)
        for number in running.instances:
            lane = _LANES_EACH * number
            self.out.slice(INSTANCES, lane, name, begun, running.left, told | ({how: True} if how else {}))
            if end > running.left:
                self._behind(number, name, running.left, end, told)
        if isinstance(running.action, MigrateKV):
            move = running.action
            if (known := self._alive.get(move.request_id)) is not None:
                known[0].migrate(self.out, begun, end, move.num_tokens, move.source, move.target)
            return
        for segment in running.action.segments:
            if (known := self._alive.get(segment.request_id)) is not None:
                if how == "void":
                    known[0].void(self.out, begun, end)
                else:
                    known[0].work(self.out, begun, end, segment, known[1])

    def _behind(self, instance: int, name: str, start: float, end: float, told: dict[str, object]) -> None:
        """In later stages, where several batches may be."""
        lane, is_new = self._later[instance].take(start, end)
        if is_new:
            self.out.track(INSTANCES, lane, f"instance {instance}, later stages")
        self.out.slice(INSTANCES, lane, name, start, end, told)

    def _count(self, told: tuple[int, ...]) -> None:
        if told[:1] != self._told[:1]:
            self.out.counter("requests waiting", self._now, {"requests": told[0]})
        for number, (slots, before) in enumerate(zip_longest(told[1:], self._told[1:])):
            if slots != before:
                self.out.counter(f"KV slots, instance {number}", self._now, {"tokens": slots})
        self._told = told


def _described(action: RunBatch | MigrateKV) -> tuple[str, dict[str, object]]:
    """A slice's name, and what is told of it."""
    if isinstance(action, MigrateKV):
        whose = {"request": action.request_id} if action.request_id else {"residence": action.residence}
        return "migrate", {"migration": action.migration_id, **whose, "tokens": action.num_tokens}
    shape = BatchShape.of(action)
    tokens = {segment.request_id: segment.length for segment in action.segments}
    return shape.kind, {"batch": action.batch_id, "group": list(action.group), "tokens": tokens}
