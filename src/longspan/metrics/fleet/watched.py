"""A fleet that is kept up to date while somebody looks, and the frames that are made of it."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import msgspec

from longspan.core.actions import Action
from longspan.core.decision import Decision
from longspan.core.events import Event
from longspan.metrics.fleet.fleet import Fleet
from longspan.metrics.fleet.frames import About, Frame, FrameMaker
from longspan.metrics.request_reader import Opening

PAST_S = 600.0
"""How far back the charts of a page go that has just been opened, if so much is remembered."""

logger = logging.getLogger(__name__)

_encode = msgspec.json.Encoder().encode


class Watched:
    """What is worked out for all who look.

    failed: it is kept up to date no more.
    """

    def __init__(self, fleet: Fleet, shift: float = 0.0) -> None:
        """shift: see `FrameMaker`."""
        self.fleet = fleet
        self.failed = False
        self._maker = FrameMaker(fleet, shift)
        self._past: _Past | None = None

    def read(self, now: float, event: Event, actions: Sequence[Action], why: Sequence[Decision]) -> None:
        """Take in one call of the scheduler. What fails here is the page's, and nobody else's."""
        if self.failed:
            return
        try:
            self.fleet.read(now, event, actions, why)
        except Exception:
            self.failed = True
            logger.exception("what the page shows cannot be kept up to date")

    def begin_past(self, opening: Opening, begin: float, end: float) -> None:
        """Have `read_past` told, next, of what was from `begin` to `end`, before anything was read."""
        numbers = {life.id: life.number for life in (*self.fleet.lives.values(), *self.fleet.draining.values())}
        fleet = Fleet(len(self.fleet.instances), self.fleet.ttft.window_s, numbers)
        fleet.skip_to(opening, begin)
        self._past = _Past(FrameMaker(fleet, self._maker.shift, self._maker.sample_s), end)

    def read_past(self, now: float, event: Event, actions: Sequence[Action], why: Sequence[Decision]) -> None:
        """Take in one call of before."""
        assert self._past is not None
        self._past.read(now, event, actions, why)

    def end_past(self) -> None:
        """Have all of that be in the next whole."""
        past, self._past = self._past, None
        if past is not None:
            self._maker.follow(past.done())

    def frame(self, now: float, about: About | None, state: str | None) -> tuple[bytes, bytes]:
        """Return what has changed as a server-sent event, and where `about` is told, what there is as another."""
        frame = self._maker.changes(now)
        frame.state = state
        whole = b"" if about is None else event_of(msgspec.structs.replace(self._maker.whole(), about=about))
        return event_of(frame), whole


class _Past:
    """What was before somebody looked."""

    def __init__(self, maker: FrameMaker, end: float) -> None:
        self._maker, self._end = maker, end
        self._begin = self._due = end - PAST_S

    def read(self, now: float, event: Event, actions: Sequence[Action], why: Sequence[Decision]) -> None:
        maker, due = self._maker, self._due
        if now >= due:
            maker.pass_by(due if due > self._begin else now)
            self._due = max(due, now - maker.sample_s) + maker.sample_s
        maker.fleet.read(now, event, actions, why)

    def done(self) -> FrameMaker:
        self._maker.pass_by(self._end)
        return self._maker


def event_of(frame: Frame) -> bytes:
    """Return it as a server-sent event."""
    return b"data: " + _encode(frame) + b"\n\n"
