"""Frames of an event log: what a page would have been told, had it looked on."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from longspan import __version__
from longspan.metrics.event_log import EventLog
from longspan.metrics.fleet.fleet import WINDOW_S, Fleet
from longspan.metrics.fleet.frames import About, Frame, FrameMaker

MOST_FRAMES, MOST_ROWS = 1500, 200_000
"""Steps in which a log is shown, and rows of instances in all of them: of a large fleet it is shown in fewer."""
LEAST_S = 0.25
_WHOLE_EVERY = 40  # frames; a page that jumps begins there


class LogFrames(msgspec.Struct):
    """A log for a page. Times are seconds since its first event.

    stories: the lines of some requests' stories, by the request's id, where the page has no log to ask for them.
    """

    name: str
    about: About
    begin: float
    end: float
    frames: list[Frame]
    stories: dict[str, list[str]] = {}


def frames_of(log: EventLog, most: int = MOST_FRAMES) -> LogFrames:
    """Read the log, twice, and return so many frames at most. Raises ReplayError: it cannot be read."""
    begin, end = _times(log)
    most = min(most, MOST_ROWS // log.config.num_instances + 1)
    step = max(LEAST_S, (end - begin) / most)
    about = About(
        log.path.name, log.policy, log.config.num_instances, log.config.kv_tokens, __version__, "log"
    )
    frames = list(_frames(log, begin, step))
    if frames:
        frames[0].about = about
    return LogFrames(log.path.name, about, 0.0, round(end - begin, 3), frames)


def _times(log: EventLog) -> tuple[float, float]:
    begin = end = None
    for record in log:
        begin, end = record.now if begin is None else begin, record.now
    return begin or 0.0, end or 0.0


def _frames(log: EventLog, begin: float, step: float) -> Iterator[Frame]:
    """One for each step in which something happens, and one for its end."""
    fleet = Fleet(log.config.num_instances, max(WINDOW_S, 10 * step))
    maker = FrameMaker(fleet, -begin, max(1.0, step))
    made, due, expected, has_begun = 0, begin, 1, False
    for piece in log.pieces:
        has_gap, expected = piece.number != expected, piece.number + 1
        for record in piece:
            if record.now > due and has_begun:
                made += 1
                yield _frame(maker, due, made)
                due += step * max(1, (record.now - due) // step)
            if has_gap:
                fleet.skip_to(piece, record.now)
                has_gap = False
            fleet.read(record.now, record.event, record.actions, record.why)
            has_begun = True
    yield _frame(maker, max(due, fleet.now), made + 1)


def _frame(maker: FrameMaker, now: float, made: int) -> Frame:
    """A whole one has the requests anew, and of the lists what is new, as all have."""
    frame = maker.changes(now)
    if made % _WHOLE_EVERY == 1:
        frame.whole, frame.requests, frame.gone = True, maker.rows(), ()
    return frame
