"""The story of one request, told from an event log: what ran where, who ran while it waited, and why.

    for line in explain("events.jsonl", "r7").lines(): print(line)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from longspan.core.actions import FreeKV, MigrateKV, RefuseRequest, RunBatch, Segment
from longspan.core.decision import Decision
from longspan.core.events import BatchCompleted, FirstStageFree, KVMigrated, RequestAborted, RequestArrived
from longspan.errors import ReplayError
from longspan.metrics.event_log import EventLog, LogRecord

Kind = Literal["waits", "prefill", "decode", "scales", "pauses", "migrates", "preempted", "refused", "ended"]

MOST_DELAYERS = 3

_TOLD_BY: dict[str, tuple[Kind, ...]] = {
    "batch": ("prefill",),
    "scale down": ("prefill",),
    "scale up": ("scales", "decode"),
    "pause": ("pauses",),
    "gather": ("waits", "pauses"),
    "hold": ("pauses",),
    "empty": ("waits",),
    "preempt": ("preempted",),
}
"""Step of a policy -> the chapters that it explains; others explain whatever begins then."""


@dataclass(frozen=True, slots=True)
class Delayer:
    """Another request that ran meanwhile: for so many seconds, and instances times seconds."""

    request_id: str
    seconds: float
    instance_seconds: float


@dataclass(frozen=True, slots=True)
class Chapter:
    """One part of a request's life, from `start` to `end`, seconds of the log's clock.

    group: the instances that ran it, or that it scaled or migrated to. before: those that it had until then.
    count: iterations. tokens: new tokens of a prefill, or tokens that moved. others: most requests that shared a batch.
    delayers: who ran while it waited or paused, those that took most first. detail: why it ended, or how it began.
    """

    kind: Kind
    start: float
    end: float
    group: tuple[int, ...] = ()
    before: tuple[int, ...] = ()
    masters: tuple[int, ...] = ()
    count: int = 1
    tokens: int = 0
    others: int = 0
    delayers: tuple[Delayer, ...] = ()
    detail: str = ""
    why: tuple[Decision, ...] = ()


@dataclass(frozen=True, slots=True)
class Story:
    """All chapters in order."""

    request_id: str
    arrived: RequestArrived
    chapters: tuple[Chapter, ...]

    def lines(self) -> Iterator[str]:
        """For people; times count from the arrival."""
        begin = self.chapters[0].start if self.chapters else 0.0
        asked = self.arrived
        yield f"{self.request_id}: {asked.num_prompt_tokens} prompt tokens, at most {asked.max_tokens} to generate"
        for chapter in self.chapters:
            yield f"  {chapter.start - begin:+10.3f} s  {_describe(chapter)}"
            if chapter.delayers:
                yield f"{'':16}meanwhile: {', '.join(map(_describe_delayer, chapter.delayers))}"
            for decision in chapter.why:
                yield f"{'':16}{_describe_decision(decision)}"


def explain(path: Path | str, request_id: str) -> Story:
    """Raises ReplayError if the log cannot be read, or knows no such request."""
    log = EventLog(path)
    reader = _Reader(request_id)
    for record in log:
        reader.read(record)
    if reader.arrived is None:
        raise ReplayError(f"{log.path}: no request {request_id!r} arrives in it")
    return Story(request_id, reader.arrived, tuple(reader.finished_chapters()))


# what happened


@dataclass(slots=True)
class _Ran:
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


class _Reader:
    """Follows one request through the records, and keeps what all others did since it arrived."""

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self.arrived: RequestArrived | None = None
        self.chapters: list[Chapter] = []
        self._batches: dict[int, _Ran] = {}
        self._migrations: dict[int, _Ran] = {}
        self._last_end: dict[int, float] = {}
        self._ran: list[_Ran] = []
        self._waiting: set[str] = set()
        self._idle_since: float | None = None
        self._group: tuple[int, ...] = ()
        self._notes: list[tuple[float, Decision]] = []
        self._now = 0.0

    def read(self, record: LogRecord) -> None:
        self._now = record.now
        match record.event:
            case RequestArrived():
                self._arrive(record.event)
            case FirstStageFree(batch_id):
                self._leave_first_stage(self._batches[batch_id])
            case BatchCompleted(batch_id, outputs):
                self._finish(self._batches.pop(batch_id))
                for output in outputs:
                    if output.request_id == self.request_id and output.finish_reason is not None:
                        self._end(output.finish_reason)
            case KVMigrated(migration_id):
                self._finish(self._migrations.pop(migration_id))
            case RequestAborted(request_id):
                self._waiting.discard(request_id)
                if request_id == self.request_id:
                    self._end("aborted by the client")
        for action in record.actions:
            self._act(action)
        self._notes += [(record.now, decision) for decision in record.why if self.request_id in decision.request_ids]

    def finished_chapters(self) -> Iterator[Chapter]:
        """With what the log's end cut off, who delayed it, and why."""
        if self._idle_since is not None:
            self._rest(self._now)
        chapters = list(_told(self.chapters, self._notes))
        if self.chapters and self.chapters[-1].kind not in ("ended", "refused"):
            chapters.append(Chapter("ended", self._now, self._now, detail="not yet: the log ends here"))
        for chapter in chapters:
            if chapter.kind in ("waits", "pauses"):
                where = chapter.group if chapter.kind == "pauses" else None
                yield replace(chapter, delayers=self._delayers(chapter.start, chapter.end, where))
            else:
                yield chapter

    # events

    def _arrive(self, event: RequestArrived) -> None:
        if event.request_id == self.request_id:
            self.arrived = event
            self._idle_since = self._now
            self._group = ()
        self._waiting.add(event.request_id)

    def _leave_first_stage(self, ran: _Ran) -> None:
        """Its instances may begin something else; it began when they were done with what they had begun before."""
        ran.has_left_first_stage = True
        ran.begin = max([ran.issued, *(self._last_end.get(number, ran.issued) for number in ran.instances)])
        for number in ran.instances:
            self._last_end[number] = self._now

    def _finish(self, ran: _Ran) -> None:
        if not ran.has_left_first_stage:
            self._leave_first_stage(ran)
        ran.end = self._now
        if self.arrived is None:
            return
        self._ran.append(ran)
        if isinstance(ran.action, MigrateKV):
            if ran.action.request_id == self.request_id:
                self._moved(ran, ran.action)
        else:
            for segment in ran.action.segments:
                if segment.request_id == self.request_id:
                    self._iterated(ran, ran.action, segment)

    def _act(self, action: object) -> None:
        match action:
            case RunBatch():
                self._batches[action.batch_id] = _Ran(action, self._now)
                self._waiting.difference_update(segment.request_id for segment in action.segments)
            case MigrateKV():
                self._migrations[action.migration_id] = _Ran(action, self._now)
            case FreeKV(request_id, _, "preempted"):
                self._waiting.add(request_id)
                if request_id == self.request_id:
                    self._rest(self._now)
                    self.chapters.append(Chapter("preempted", self._now, self._now, self._group))
                    self._idle_since, self._group = self._now, ()
            case RefuseRequest(request_id, message):
                self._waiting.discard(request_id)
                if request_id == self.request_id:
                    self._rest(self._now)
                    self.chapters.append(Chapter("refused", self._now, self._now, detail=message))
                    self._idle_since = None

    # chapters

    def _rest(self, until: float) -> None:
        """It waited or paused until now, if it did."""
        since, self._idle_since = self._idle_since, None
        if since is None or until <= since:
            return
        kind: Kind = "pauses" if self._group else "waits"
        self.chapters.append(Chapter(kind, since, until, self._group))

    def _moved(self, ran: _Ran, action: MigrateKV) -> None:
        self._rest(ran.begin)
        self.chapters.append(
            Chapter("migrates", ran.begin, ran.end, (action.target,), (action.source,), tokens=action.num_tokens)
        )
        self._idle_since = ran.end

    def _iterated(self, ran: _Ran, batch: RunBatch, segment: Segment) -> None:
        if any(chapter.kind in ("ended", "refused") for chapter in self.chapters[-1:]):
            return  # a token for nobody
        self._rest(ran.begin)
        kind: Kind = "decode" if segment.length == 1 and segment.start > 0 else "prefill"
        # An instance that is in the batch for others only is no part of this request's group.
        mine = {*segment.compute, *(kept.instance for kept in segment.store), *(n for n, _ in segment.context)}
        group = tuple(sorted(mine))
        if self._group and group != self._group:
            self.chapters.append(Chapter("scales", ran.begin, ran.begin, group, self._group))
        self._group, self._idle_since = group, ran.end
        masters = segment.compute if kind == "decode" else ()
        last = self.chapters[-1] if self.chapters else None
        others = len(batch.segments) - 1
        same = last is not None and (last.kind, last.group, last.masters) == (kind, group, masters)
        if last is not None and same and last.end == ran.begin:
            self.chapters[-1] = replace(
                last,
                end=ran.end,
                count=last.count + 1,
                tokens=last.tokens + segment.length,
                others=max(last.others, others),
            )
        else:
            new = Chapter(kind, ran.begin, ran.end, group, (), masters, tokens=segment.length, others=others)
            self.chapters.append(new)

    def _end(self, reason: str) -> None:
        self._rest(self._now)
        self._waiting.discard(self.request_id)
        if not any(chapter.kind == "ended" for chapter in self.chapters):
            self.chapters.append(Chapter("ended", self._now, self._now, detail=reason))
        self._idle_since = None

    def _delayers(self, start: float, end: float, where: Sequence[int] | None) -> tuple[Delayer, ...]:
        """Who ran between, on any of these instances; everywhere if None."""
        seconds: dict[str, float] = {}
        volume: dict[str, float] = {}
        for ran in [*self._ran, *self._unfinished()]:
            overlap = min(end, ran.end) - max(start, ran.begin)
            if overlap <= 0 or (where is not None and not set(where) & set(ran.instances)):
                continue
            for request_id in _requests(ran.action):
                if request_id != self.request_id:
                    seconds[request_id] = seconds.get(request_id, 0.0) + overlap
                    volume[request_id] = volume.get(request_id, 0.0) + overlap * len(ran.instances)
        most = sorted(volume, key=lambda request_id: (-volume[request_id], request_id))[:MOST_DELAYERS]
        return tuple(Delayer(request_id, seconds[request_id], volume[request_id]) for request_id in most)

    def _unfinished(self) -> Iterable[_Ran]:
        for ran in [*self._batches.values(), *self._migrations.values()]:
            begin = max([ran.issued, *(self._last_end.get(number, ran.issued) for number in ran.instances)])
            yield _Ran(ran.action, ran.issued, begin=begin, end=self._now)


def _requests(action: RunBatch | MigrateKV) -> list[str]:
    if isinstance(action, MigrateKV):
        return [action.request_id]
    return [segment.request_id for segment in action.segments]


def _told(chapters: Sequence[Chapter], notes: Sequence[tuple[float, Decision]]) -> Iterator[Chapter]:
    why: dict[int, list[Decision]] = {}
    for now, decision in notes:
        place = _explained(chapters, now, _TOLD_BY.get(decision.step))
        if place is not None:
            why.setdefault(place, []).append(decision)
    for place, chapter in enumerate(chapters):
        yield replace(chapter, why=tuple(why.get(place, ())))


def _explained(chapters: Sequence[Chapter], now: float, kinds: Sequence[Kind] | None) -> int | None:
    """Which chapter of these kinds a decision explains: one that begins then, or lasts, or comes right after."""
    lasting = [place for place, chapter in enumerate(chapters) if chapter.start <= now <= chapter.end]
    beginning = [place for place in lasting if chapters[place].start == now]
    after = [place + 1 for place in lasting if place + 1 < len(chapters)]
    fitting = (place for place in [*beginning, *lasting, *after] if kinds is None or chapters[place].kind in kinds)
    return next(fitting, None)


# for people


def _describe(chapter: Chapter) -> str:
    seconds = f"{chapter.end - chapter.start:.3f} s"
    where = f"{_instances(chapter.group)} (DoP {len(chapter.group)})"
    company = f", with up to {chapter.others} others" if chapter.others else ""
    match chapter.kind:
        case "waits":
            return f"waits {seconds}"
        case "pauses":
            return f"pauses {seconds}; its KV stays on {_instances(chapter.group)}"
        case "prefill":
            parts = f" in {chapter.count} chunks" if chapter.count > 1 else ""
            return f"prefill of {chapter.tokens} tokens{parts} on {where}, {seconds}{company}"
        case "decode":
            times = f"{chapter.count} decode iterations" if chapter.count > 1 else "decode iteration"
            return f"{times} on {where}, master {_instances(chapter.masters)}, {seconds}{company}"
        case "scales":
            how = "up" if len(chapter.group) > len(chapter.before) else "down"
            how = how if len(chapter.group) != len(chapter.before) else "over"
            return f"scales {how}: from {_instances(chapter.before)} to {_instances(chapter.group)}"
        case "migrates":
            where = f"from {_instances(chapter.before)} to {_instances(chapter.group)}"
            return f"{chapter.tokens} tokens of KV migrate {where}, {seconds}"
        case "preempted":
            return "is preempted: its KV is dropped, to be computed again"
        case "refused":
            return f"is refused: {chapter.detail}"
        case "ended":
            return f"ends: {chapter.detail}"


def _describe_delayer(delayer: Delayer) -> str:
    return f"{delayer.request_id} ({delayer.seconds:.3f} s, {delayer.instance_seconds:.3f} instance-seconds)"


def _describe_decision(decision: Decision) -> str:
    predicted = ", ".join(f"{name} {value:.4g}" for name, value in decision.predicted.items())
    chosen = f" -> {_instances(decision.instances)}" if decision.instances else ""
    return f"because: {decision.step}{chosen}{f'; {predicted}' if predicted else ''}"


def _instances(numbers: Sequence[int]) -> str:
    return "+".join(map(str, numbers))
