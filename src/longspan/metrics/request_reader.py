"""One request's chapters, as the records of an event log tell them one after another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from operator import attrgetter
from typing import Protocol

from longspan.core.actions import Action, CancelBatch, MigrateKV, RefuseRequest, RunBatch, Segment, StopRequest
from longspan.core.decision import Decision
from longspan.core.events import BatchCompleted, FirstStageFree, KVMigrated, RequestAborted, RequestArrived
from longspan.metrics.event_log import LogRecord
from longspan.metrics.reasons import SHARE_STEPS, Rank, Ranks, home_of
from longspan.metrics.story import Chapter, Kind
from longspan.metrics.waits import Ran, Wait, requests_of

_TOLD_BY: dict[str, tuple[Kind, ...]] = {
    "batch": ("prefill",),
    "scale down": ("prefill",),
    "scale up": ("scales", "decode"),
    "pause": ("pauses",),
    "gather": ("waits", "pauses"),
    "hold": ("pauses",),
    "empty": ("waits",),
    "copy": ("waits",),
    "preempt": ("preempted",),
}
"""Step of a policy -> the chapters that it explains; others explain whatever begins then."""


class Opening(Protocol):
    """What is known where records begin; of an event log, a `Piece`."""

    @property
    def requests(self) -> Sequence[tuple[float, RequestArrived]]:
        """Those that had arrived before, with the times, and were alive."""
        ...

    @property
    def running(self) -> Sequence[Action]:
        """Work that was under way."""
        ...


class RequestReader:
    """Follows one request through the records."""

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self.arrived: RequestArrived | None = None
        self.chapters: list[Chapter] = []
        self._batches: dict[int, Ran] = {}
        self._migrations: dict[int, Ran] = {}
        self._last_end: dict[int, float] = {}
        self._wait: Wait | None = None
        self._waits: dict[int, Wait] = {}  # by their chapters' places
        self._own: set[Ran] = set()  # work of the request that is not done
        self._since_own: list[Ran] = []  # done while some of that is not: perhaps after it began
        self._left: set[Ran] | None = None  # once it has ended: work from before that is not done
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

    def skip_to(self, piece: Opening, now: float) -> None:
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

    def finished_chapters(self, so_far: str = "not yet: the log ends here") -> Iterator[Chapter]:
        """With what the end of the records cut off, who delayed it, and why. so_far: how one ends that has not."""
        if self._left is None:
            self._cut_off()
        self._rest(self._now)
        for ran in [*self._batches.values(), *self._migrations.values()]:
            begin = self._begin_of(ran)
            for wait in self._waits.values():
                if ran in wait.pending:
                    wait.add(Ran(ran.action, ran.issued, begin=begin, end=self._now), self._ranks.known)
        for place, chapter in enumerate(with_reasons(self.chapters, self._notes)):
            waited = self._waits.get(place)
            yield chapter if waited is None else replace(
                chapter,
                delayers=waited.delayers(self.request_id, self._rank),
                over_share_s=self._rank.over_share_s(chapter.start, chapter.end),
            )
        if self.chapters and self._left is None:
            yield Chapter("ended", self._now, self._now, detail=so_far)

    # events

    def _leave_first_stage(self, ran: Ran | None) -> None:
        """Its instances may begin something else; it began when they were done with what they had begun before."""
        if ran is None:
            return
        ran.has_left_first_stage = True
        ran.begin = self._begin_of(ran)
        for number in ran.instances:
            self._last_end[number] = self._now

    def _begin_of(self, ran: Ran) -> float:
        """Of work that is on its first stage, or comes next there."""
        return max([ran.issued, *(self._last_end.get(number, ran.issued) for number in ran.instances)])

    def _finish(self, ran: Ran | None) -> None:
        """None: it began before this log."""
        if ran is None:
            return
        self._close(ran)
        self._tell(ran)

    def _tell(self, ran: Ran) -> None:
        if isinstance(ran.action, MigrateKV):
            if ran.action.request_id == self.request_id:
                self._moved(ran, ran.action)
        elif self.arrived is not None:
            for segment in ran.action.segments:
                if segment.request_id == self.request_id:
                    self._iterated(ran, ran.action, segment)

    def _close(self, ran: Ran) -> None:
        if not ran.has_left_first_stage:
            self._leave_first_stage(ran)
        ran.end = self._now
        if self._left is not None:
            self._left.discard(ran)
        self._count_delay(ran)
        self._own.discard(ran)

    def _void(self, ran: Ran | None) -> None:
        """It has ended for nothing; who waited for it did so all the same."""
        if ran is None:
            return
        is_own = ran in self._own
        self._close(ran)
        if is_own and self._left is None:
            self._rest(ran.begin)
            self.chapters.append(Chapter("void", ran.begin, ran.end, ran.instances))
            self._begin_wait()

    def _count_delay(self, ran: Ran) -> None:
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
            case CancelBatch(batch_ids, migration_ids):
                for batch_id in batch_ids:
                    self._void(self._batches.pop(batch_id, None))
                for migration_id in migration_ids:
                    self._void(self._migrations.pop(migration_id, None))

    def _issue(self, works: dict[int, Ran], number: int, action: RunBatch | MigrateKV) -> None:
        works[number] = ran = Ran(action, self._now)
        if self.arrived is not None and self.request_id in requests_of(action):
            self._own.add(ran)

    # chapters

    def _begin_wait(self) -> None:
        self._wait = Wait(self._now, frozenset(self._group) if self._group else self._home)
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

    def _moved(self, ran: Ran, action: MigrateKV) -> None:
        self._rest(ran.begin)
        self.chapters.append(
            Chapter("migrates", ran.begin, ran.end, (action.target,), (action.source,), tokens=action.num_tokens)
        )
        self._begin_wait()

    def _iterated(self, ran: Ran, batch: RunBatch, segment: Segment) -> None:
        if self._left is not None:
            return  # a token for nobody
        self._rest(ran.begin)
        begins = self._may_find() and not self._group
        kind: Kind = "decode" if segment.length == 1 and segment.start > 0 and not begins else "prefill"
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
            found, tokens = segment.start if begins else 0, segment.length
            new = Chapter(kind, ran.begin, ran.end, group, (), masters, tokens=tokens, found=found, others=others)
            self.chapters.append(new)

    def _may_find(self) -> bool:
        """Whether tokens before its first segment were computed for others, and not in a part of the log that lacks."""
        told = [chapter.kind for chapter in self.chapters if chapter.kind in ("missing", "preempted")]
        return self.arrived is not None and len(self.arrived.prefix_keys) > 0 and told[-1:] != ["missing"]

    def _cut_off(self) -> None:
        """What runs of its own is told up to now; it does not wait meanwhile."""
        busy: set[int] = set()
        for ran in sorted([*self._batches.values(), *self._migrations.values()], key=attrgetter("issued")):
            runs = ran.has_left_first_stage or busy.isdisjoint(ran.instances)
            if not ran.has_left_first_stage:
                busy.update(ran.instances)
            begin = ran.begin if ran.has_left_first_stage else self._begin_of(ran)
            if ran in self._own and runs and begin < self._now:
                self._tell(Ran(ran.action, ran.issued, begin=begin, end=self._now))

    def _end(self, kind: Kind, detail: str) -> None:
        if self._left is None and self.arrived is not None:
            self._cut_off()
        self._rest(self._now)
        if self._left is None and self.arrived is not None:
            self._left = {*self._batches.values(), *self._migrations.values()}
            self.chapters.append(Chapter(kind, self._now, self._now, detail=detail))


def with_reasons(chapters: Sequence[Chapter], notes: Sequence[tuple[float, Decision]]) -> Iterator[Chapter]:
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
