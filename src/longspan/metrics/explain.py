"""The story of one request, told from an event log: what ran where, what ran while it waited, and why.

    for line in explain("events.jsonl", "r7").lines(): print(line)

The log is read once, up to the request's end; what is kept of it meanwhile does not grow with its length.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Literal

from longspan.core.actions import MigrateKV, RefuseRequest, RunBatch, Segment, StopRequest
from longspan.core.decision import Decision
from longspan.core.events import BatchCompleted, FirstStageFree, KVMigrated, RequestAborted, RequestArrived
from longspan.errors import ReplayError
from longspan.metrics.event_log import EventLog, LogRecord, Piece
from longspan.metrics.reasons import SHARE_STEPS, Rank, Ranks, home_of, in_words, why_first

Kind = Literal["waits", "prefill", "decode", "scales", "pauses", "migrates", "preempted", "refused", "ended", "missing"]

MOST_DELAYERS = 3
MOST_REASONS = 6

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
    """Another request that ran meanwhile: for so many seconds, and instances times seconds.

    why: a prompt went first; "" if it is not known.
    """

    request_id: str
    seconds: float
    instance_seconds: float
    why: str = ""


@dataclass(frozen=True, slots=True)
class Chapter:
    """One part of a request's life, from `start` to `end`, seconds of the log's clock.

    group: the instances that ran it, or that it scaled or migrated to. before: those that it had until then.
    count: iterations. tokens: new tokens of a prefill, or tokens that moved. others: most requests that shared a batch.
    delayers: requests that ran while it waited or paused, the longest first. over_share_s: how long of that its tenant
    was beyond its share. detail: why it ended, or how it began.
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
    over_share_s: float = 0.0
    detail: str = ""
    why: tuple[Decision, ...] = ()


@dataclass(frozen=True, slots=True)
class Story:
    """All chapters in order."""

    request_id: str
    arrived: RequestArrived
    chapters: tuple[Chapter, ...]

    def lines(self) -> Iterator[str]:
        """Yield lines for people; times count from the arrival."""
        begin = self.chapters[0].start if self.chapters else 0.0
        asked = self.arrived
        yield f"{self.request_id}: {asked.num_prompt_tokens} prompt tokens, at most {asked.max_tokens} to generate"
        for chapter in self.chapters:
            yield f"  {chapter.start - begin:+10.3f} s  {_describe(chapter)}"
            if chapter.delayers:
                yield f"{'':16}meanwhile: {', '.join(map(_describe_delayer, chapter.delayers))}"
            if chapter.over_share_s > 0.0:
                tenant = "its tenant" if asked.service.tenant is None else f"its tenant {asked.service.tenant}"
                yield (
                    f"{'':16}for {chapter.over_share_s:.3f} s of that {tenant} had had more than its share of the "
                    "service: those of tenants within theirs went first"
                )
            for delayer in chapter.delayers:
                if delayer.why:
                    yield f"{'':16}{delayer.request_id} went first: {delayer.why}"
            for sentence in chain.from_iterable(map(in_words, chapter.why)):
                yield f"{'':16}{sentence}"
            others = [decision for decision in chapter.why if not in_words(decision)]
            for decision in others[:MOST_REASONS]:
                yield f"{'':16}{_describe_decision(decision)}"
            if len(others) > MOST_REASONS:
                yield f"{'':16}and {len(others) - MOST_REASONS} decisions more"


def explain(path: Path | str, request_id: str) -> Story:
    """Raises ReplayError if the log cannot be read, or knows no such request."""
    return explain_all(EventLog(path), [request_id])[0]


def explain_all(log: EventLog, request_ids: Sequence[str]) -> list[Story]:
    """Explain several requests, in one go. Raises ReplayError as `explain` does."""
    readers = [_Reader(request_id) for request_id in request_ids]
    _read(log, readers)
    for reader in readers:
        if reader.arrived is None:
            raise ReplayError(f"{log.path}: no request {reader.request_id!r} arrives in it")
    return [
        Story(reader.request_id, reader.arrived, tuple(reader.finished_chapters()))
        for reader in readers
        if reader.arrived is not None
    ]


def _read(log: EventLog, readers: Sequence[_Reader]) -> None:
    """Until there is nothing more to learn."""
    expected = 1
    for piece in log.pieces:
        has_gap = piece.number != expected
        expected = piece.number + 1
        for record in piece:
            for reader in readers:
                if has_gap:
                    reader.skip_to(piece, record.now)
                reader.read(record)
            has_gap = False
            if all([reader.is_done for reader in readers]):
                return
        if piece.truncated_line is not None:
            expected = -1


# what happened


@dataclass(slots=True, eq=False)
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


@dataclass(slots=True)
class _Wait:
    """It waits or pauses since `start`; until `end`, once that is known.

    where: instances that matter; None: all. pending: work that began before the end, perhaps, and is not done.
    seconds, volume: by request, of those that ran meanwhile. prompts: by request, when its prompt did first, and its
    rank.
    """

    start: float
    where: frozenset[int] | None
    end: float | None = None
    pending: set[_Ran] = field(default_factory=set)
    seconds: dict[str, float] = field(default_factory=dict)
    volume: dict[str, float] = field(default_factory=dict)
    prompts: dict[str, tuple[float, Rank]] = field(default_factory=dict)

    def add(self, ran: _Ran, ranks: Mapping[str, Rank]) -> None:
        """ranks: of requests that are alive."""
        end = ran.end if self.end is None else min(self.end, ran.end)
        overlap = end - max(self.start, ran.begin)
        if overlap <= 0 or (self.where is not None and self.where.isdisjoint(ran.instances)):
            return
        for request_id in _requests(ran.action):
            self.seconds[request_id] = self.seconds.get(request_id, 0.0) + overlap
            self.volume[request_id] = self.volume.get(request_id, 0.0) + overlap * len(ran.instances)
        for request_id in _prompts(ran.action) if ran.issued >= self.start else ():  # else it was there already
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


class _Reader:
    """Follows one request through the records."""

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self.arrived: RequestArrived | None = None
        self.chapters: list[Chapter] = []
        self._batches: dict[int, _Ran] = {}
        self._migrations: dict[int, _Ran] = {}
        self._last_end: dict[int, float] = {}
        self._wait: _Wait | None = None
        self._waits: dict[int, _Wait] = {}  # by their chapters' places
        self._own: set[_Ran] = set()  # work of the request that is not done
        self._since_own: list[_Ran] = []  # done while some of that is not: perhaps after it began
        self._left: set[_Ran] | None = None  # once it has ended: work from before that is not done
        self._group: tuple[int, ...] = ()
        self._home: frozenset[int] | None = None  # its node's instances, where there are several nodes
        self._notes: list[tuple[float, Decision]] = []
        self._ranks = Ranks()
        self._rank = Rank(0)
        self._now = 0.0

    @property
    def is_done(self) -> bool:
        """It has ended, and so has everything that may have delayed it."""
        return self._left is not None and not self._left

    def read(self, record: LogRecord) -> None:
        self._now = record.now
        self._ranks.learn(record)
        self._rank = self._ranks.known.get(self.request_id, self._rank)
        match record.event:
            case RequestArrived(self.request_id) if self.arrived is None:
                self.arrived = record.event
                self._group, self._home = (), home_of(record.why)
                self._begin_wait()
            case FirstStageFree(batch_id):
                self._leave_first_stage(self._batches.get(batch_id))
            case BatchCompleted(batch_id, outputs):
                self._finish(self._batches.pop(batch_id, None))
                for output in outputs:
                    if output.request_id == self.request_id and output.finish_reason is not None:
                        self._end("ended", output.finish_reason)
            case KVMigrated(migration_id):
                self._finish(self._migrations.pop(migration_id, None))
            case RequestAborted(self.request_id):
                self._end("ended", "aborted by the client")
        for action in record.actions:
            self._act(action)
        self._notes += [
            (record.now, decision)
            for decision in record.why
            if self.request_id in decision.request_ids and decision.step not in SHARE_STEPS
        ]
        self._ranks.forget(record)

    def skip_to(self, piece: Piece, now: float) -> None:
        """What was between is missing. What runs at `now` is taken for begun then."""
        before, self._now = self._now, now
        self._batches, self._migrations, self._last_end = {}, {}, {}
        self._own, self._since_own = set(), []
        self._ranks = Ranks()
        if self._left is not None:
            self._left = set()
            return
        alive = {event.request_id: (at, event) for at, event in piece.requests}.get(self.request_id)
        if self.arrived is not None:
            self._rest(before)
        elif alive is not None:
            before, self.arrived = alive
        else:
            return
        self.chapters.append(Chapter("missing", before, now))
        if alive is None:
            self._end("ended", "the pieces that tell how are missing")
        else:
            self._begin_wait()
            for action in piece.running:
                self._act(action)

    def finished_chapters(self) -> Iterator[Chapter]:
        """With what the log's end cut off, who delayed it, and why."""
        self._rest(self._now)
        for ran in [*self._batches.values(), *self._migrations.values()]:
            begin = max([ran.issued, *(self._last_end.get(number, ran.issued) for number in ran.instances)])
            for wait in self._waits.values():
                if ran in wait.pending:
                    wait.add(_Ran(ran.action, ran.issued, begin=begin, end=self._now), self._ranks.known)
        for place, chapter in enumerate(_told(self.chapters, self._notes)):
            waited = self._waits.get(place)
            yield chapter if waited is None else replace(
                chapter,
                delayers=waited.delayers(self.request_id, self._rank),
                over_share_s=self._rank.over_share_s(chapter.start, chapter.end),
            )
        if self.chapters and self._left is None:
            yield Chapter("ended", self._now, self._now, detail="not yet: the log ends here")

    # events

    def _leave_first_stage(self, ran: _Ran | None) -> None:
        """Its instances may begin something else; it began when they were done with what they had begun before."""
        if ran is None:
            return
        ran.has_left_first_stage = True
        ran.begin = max([ran.issued, *(self._last_end.get(number, ran.issued) for number in ran.instances)])
        for number in ran.instances:
            self._last_end[number] = self._now

    def _finish(self, ran: _Ran | None) -> None:
        """None: it began before this log."""
        if ran is None:
            return
        if not ran.has_left_first_stage:
            self._leave_first_stage(ran)
        ran.end = self._now
        if self._left is not None:
            self._left.discard(ran)
        self._count_delay(ran)
        self._own.discard(ran)
        if isinstance(ran.action, MigrateKV):
            if ran.action.request_id == self.request_id:
                self._moved(ran, ran.action)
        elif self.arrived is not None:
            for segment in ran.action.segments:
                if segment.request_id == self.request_id:
                    self._iterated(ran, ran.action, segment)

    def _count_delay(self, ran: _Ran) -> None:
        for wait in [wait for wait in self._waits.values() if wait.pending]:
            if ran in wait.pending:
                wait.pending.discard(ran)
                wait.add(ran, self._ranks.known)
        if self._wait is not None:
            if self._own:
                self._since_own.append(ran)
            else:  # nothing of the request's own can have begun before this end
                self._wait.add(ran, self._ranks.known)

    def _act(self, action: object) -> None:
        match action:
            case RunBatch():
                self._issue(self._batches, action.batch_id, action)
            case MigrateKV():
                self._issue(self._migrations, action.migration_id, action)
            case StopRequest(self.request_id, _, "preempted"):
                self._rest(self._now)
                self.chapters.append(Chapter("preempted", self._now, self._now, self._group))
                self._group = ()
                self._begin_wait()
            case RefuseRequest(self.request_id, message):
                self._end("refused", message)

    def _issue(self, works: dict[int, _Ran], number: int, action: RunBatch | MigrateKV) -> None:
        works[number] = ran = _Ran(action, self._now)
        if self.arrived is not None and self.request_id in _requests(action):
            self._own.add(ran)

    # chapters

    def _begin_wait(self) -> None:
        self._wait = _Wait(self._now, frozenset(self._group) if self._group else self._home)
        self._since_own = []

    def _rest(self, until: float) -> None:
        """It waited or paused until then, if it did."""
        wait, self._wait = self._wait, None
        if wait is None or until <= wait.start:
            return
        wait.end = until
        for ran in self._since_own:
            wait.add(ran, self._ranks.known)
        wait.pending = {*self._batches.values(), *self._migrations.values()}
        self._waits[len(self.chapters)] = wait
        kind: Kind = "pauses" if self._group else "waits"
        self.chapters.append(Chapter(kind, wait.start, until, self._group))

    def _moved(self, ran: _Ran, action: MigrateKV) -> None:
        self._rest(ran.begin)
        self.chapters.append(
            Chapter("migrates", ran.begin, ran.end, (action.target,), (action.source,), tokens=action.num_tokens)
        )
        self._begin_wait()

    def _iterated(self, ran: _Ran, batch: RunBatch, segment: Segment) -> None:
        if self._left is not None:
            return  # a token for nobody
        self._rest(ran.begin)
        kind: Kind = "decode" if segment.length == 1 and segment.start > 0 else "prefill"
        # An instance that is in the batch for others only is no part of this request's group.
        mine = {*segment.compute, *(kept.instance for kept in segment.store), *(n for n, _ in segment.context)}
        group = tuple(sorted(mine))
        if self._group and group != self._group:
            self.chapters.append(Chapter("scales", ran.begin, ran.begin, group, self._group))
        self._group = group
        self._begin_wait()
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

    def _end(self, kind: Kind, detail: str) -> None:
        self._rest(self._now)
        if self._left is None and self.arrived is not None:
            self._left = {*self._batches.values(), *self._migrations.values()}
            self.chapters.append(Chapter(kind, self._now, self._now, detail=detail))


def _requests(action: RunBatch | MigrateKV) -> list[str]:
    if isinstance(action, MigrateKV):
        return [action.request_id]
    return [segment.request_id for segment in action.segments]


def _prompts(action: RunBatch | MigrateKV) -> list[str]:
    """Those of which a part is computed, other than a token that was generated."""
    if isinstance(action, MigrateKV):
        return []
    return [segment.request_id for segment in action.segments if segment.length > 1 or segment.start == 0]


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
    match chapter.kind:
        case "waits":
            return f"waits {seconds}"
        case "pauses":
            return f"pauses {seconds}; its KV stays on {_instances(chapter.group)}"
        case "prefill" | "decode":
            return f"{_describe_iterations(chapter)}, {seconds}{_describe_company(chapter)}"
        case "scales":
            how = "up" if len(chapter.group) > len(chapter.before) else "down"
            how = how if len(chapter.group) != len(chapter.before) else "over"
            return f"scales {how}: {_describe_move(chapter)}"
        case "migrates":
            return f"{chapter.tokens} tokens of KV migrate {_describe_move(chapter)}, {seconds}"
        case "preempted":
            return "is preempted: its KV is dropped, to be computed again"
        case "refused":
            return f"is refused: {chapter.detail}"
        case "ended":
            return f"ends: {chapter.detail}"
        case "missing":
            return f"{seconds} are missing in this log"


def _describe_iterations(chapter: Chapter) -> str:
    where = f"{_instances(chapter.group)} (DoP {len(chapter.group)})"
    if chapter.kind == "prefill":
        parts = f" in {chapter.count} chunks" if chapter.count > 1 else ""
        return f"prefill of {chapter.tokens} tokens{parts} on {where}"
    times = f"{chapter.count} decode iterations" if chapter.count > 1 else "decode iteration"
    return f"{times} on {where}, master {_instances(chapter.masters)}"


def _describe_company(chapter: Chapter) -> str:
    return f", with up to {chapter.others} others" if chapter.others else ""


def _describe_move(chapter: Chapter) -> str:
    return f"from {_instances(chapter.before)} to {_instances(chapter.group)}"


def _describe_delayer(delayer: Delayer) -> str:
    return f"{delayer.request_id} ({delayer.seconds:.3f} s, {delayer.instance_seconds:.3f} instance-seconds)"


def _describe_decision(decision: Decision) -> str:
    predicted = ", ".join(f"{name} {value:.4g}" for name, value in decision.predicted.items())
    chosen = f" -> {_instances(decision.instances)}" if decision.instances else ""
    return f"because: {decision.step}{chosen}{f'; {predicted}' if predicted else ''}"


def _instances(numbers: Sequence[int]) -> str:
    return "+".join(map(str, numbers))
