"""What happened in a run, and what its policy did about it, as far as its log shows it."""

from __future__ import annotations

from collections.abc import Iterable, Set

from longspan.config import SchedulerConfig
from longspan.core.actions import MigrateKV, RefuseRequest, RunBatch, Segment, StopRequest
from longspan.core.events import BatchCompleted, FirstStageFree, RequestAborted, RequestArrived
from longspan.metrics.event_log import LogRecord

FEATURES: dict[str, str] = {
    "stages": "a batch leaves the first of several pipeline stages",
    "follower": "a batch enters the first stage while one is in a later stage of the same instance",
    "migration": "KV moves",
    "preemption": "a request loses its KV, to be computed again",
    "abort": "a request that holds KV goes away",
    "abort in line": "a request that waits goes away",
    "too long": "a request is refused since it can never fit",
    "queue full": "a request is refused since too many wait",
    "chunks": "a prompt is cut",
    "shards": "a prompt that is cut goes on at an instance that held none of it",
    "group": "several instances run a batch",
    "masters": "several instances compute tokens of one decode batch",
    "look-ahead": "a batch is queued behind a running one of its instances",
    "token for nobody": "a request that has ended gets a token",
    "out of order": "a batch ends that was issued before one that has ended already",
}


def features(config: SchedulerConfig, records: Iterable[LogRecord]) -> Set[str]:
    """Those of `FEATURES` that occur."""
    watcher = _Watcher(config)
    for record in records:
        watcher.watch(record)
    assert watcher.seen <= set(FEATURES)
    return watcher.seen


class _Watcher:
    """started: requests of which something was run since they arrived, or were preempted. running: batches."""

    def __init__(self, config: SchedulerConfig) -> None:
        self.config = config
        self.seen: set[str] = set()
        self.alive: set[str] = set()
        self.started: set[str] = set()
        self.running: dict[int, RunBatch] = {}
        self.newest_ended = -1

    def watch(self, record: LogRecord) -> None:
        match record.event:
            case RequestArrived():
                self.alive.add(record.event.request_id)
            case RequestAborted():
                self._abort(record.event.request_id)
            case FirstStageFree():
                self.seen.add("stages")
            case BatchCompleted():
                self._complete(record.event)
        for action in record.actions:
            match action:
                case RunBatch():
                    self._run(action)
                case MigrateKV():
                    self.seen.add("migration")
                case StopRequest(request_id, reason="preempted"):
                    self.seen.add("preemption")
                    self.started.discard(request_id)
                case RefuseRequest():
                    self.seen.add("too long" if action.reason == "too_long" else "queue full")
                    self.alive.discard(action.request_id)

    def _abort(self, request_id: str) -> None:
        if request_id in self.alive:
            self.seen.add("abort" if request_id in self.started else "abort in line")
            self.alive.discard(request_id)

    def _complete(self, event: BatchCompleted) -> None:
        if event.batch_id < self.newest_ended:
            self.seen.add("out of order")
        self.newest_ended = max(self.newest_ended, event.batch_id)
        del self.running[event.batch_id]
        for output in event.outputs:
            if output.request_id not in self.alive:
                self.seen.add("token for nobody")
            if output.finish_reason is not None:
                self.alive.discard(output.request_id)

    def _run(self, batch: RunBatch) -> None:
        if any(not set(batch.group).isdisjoint(ahead.group) for ahead in self.running.values()):
            self.seen.add("look-ahead" if self.config.pp == 1 else "follower")
        if len(batch.group) > 1:
            self.seen.add("group")
        if all(segment.length == 1 for segment in batch.segments):
            masters = {segment.compute[0] for segment in batch.segments}
            self.seen |= {"masters"} if len(masters) > 1 else set()
        for segment in batch.segments:
            self._look_at(segment)
        self.started.update(segment.request_id for segment in batch.segments)
        self.running[batch.batch_id] = batch

    def _look_at(self, segment: Segment) -> None:
        if not segment.emits:
            self.seen.add("chunks")
        holders = {instance for instance, _ in segment.context}
        if segment.length > 1 and holders and not {kept.instance for kept in segment.store} <= holders:
            self.seen.add("shards")
