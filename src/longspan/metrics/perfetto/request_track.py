"""One request's slices: in the queue, prefill, pauses, decode; iterations that follow each other at once are one."""

from __future__ import annotations

from dataclasses import dataclass, field

from longspan.core.actions import Segment
from longspan.core.events import RequestArrived
from longspan.metrics.elasticity import group_of
from longspan.metrics.perfetto.tracks import REQUESTS, TraceWriter


@dataclass(slots=True)
class _Slice:
    kind: str
    start: float
    end: float
    group: tuple[int, ...]
    tokens: int = 0
    iterations: int = 0


@dataclass(slots=True)
class RequestTrack:
    """A request that is alive.

    idle_since: when the last of its work that is told ended. has_begun: since its arrival, or its preemption.
    """

    number: int
    idle_since: float | None
    has_begun: bool = False
    _last: _Slice | None = field(default=None)

    @classmethod
    def arrive(cls, out: TraceWriter, number: int, now: float, event: RequestArrived) -> RequestTrack:
        out.track(REQUESTS, number, event.request_id)
        told = {"prompt_tokens": event.num_prompt_tokens, "max_tokens": event.max_tokens}
        out.instant(REQUESTS, number, "arrives", now, told)
        return cls(number, now)

    def work(self, out: TraceWriter, start: float, end: float, segment: Segment, first_may_find: bool) -> None:
        """A batch with this segment ran. first_may_find: its KV may have been there, so one token may be a prefill."""
        begins = not self.has_begun
        is_decode = segment.length == 1 and segment.start > 0 and not (begins and first_may_find)
        self._wait(out, start)
        kind, group = "decode" if is_decode else "prefill", group_of(segment)
        last = self._last
        if last is None or (last.kind, last.group, last.end) != (kind, group, start):
            self.flush(out)
            self._last = last = _Slice(kind, start, end, group)
        last.end = end
        last.tokens += segment.length
        last.iterations += 1
        self.has_begun, self.idle_since = True, end

    def migrate(self, out: TraceWriter, start: float, end: float, tokens: int, source: int, target: int) -> None:
        self._wait(out, start)
        self.flush(out)
        told = {"tokens": tokens, "from": source, "to": target}
        out.slice(REQUESTS, self.number, "migrate", start, end, told)
        self.idle_since = end

    def void(self, out: TraceWriter, start: float, end: float) -> None:
        """Work of it ended for nothing."""
        self._wait(out, start)
        self.flush(out)
        out.slice(REQUESTS, self.number, "void", start, end, {})
        self.idle_since = end

    def preempt(self, out: TraceWriter, now: float) -> None:
        self._wait(out, now)
        self.flush(out)
        out.instant(REQUESTS, self.number, "preempted", now, {})
        self.has_begun, self.idle_since = False, now

    def end(self, out: TraceWriter, now: float, why: str) -> None:
        self._wait(out, now)
        self.flush(out)
        out.instant(REQUESTS, self.number, why, now, {})

    def flush(self, out: TraceWriter) -> None:
        """Write what was held back for what may follow."""
        last, self._last = self._last, None
        if last is not None:
            told = {"instances": list(last.group), "tokens": last.tokens, "iterations": last.iterations}
            out.slice(REQUESTS, self.number, last.kind, last.start, last.end, told)

    def _wait(self, out: TraceWriter, until: float) -> None:
        since, self.idle_since = self.idle_since, None
        if since is not None and until > since:
            self.flush(out)
            out.slice(REQUESTS, self.number, "pause" if self.has_begun else "queue", since, until, {})
