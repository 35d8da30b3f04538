"""Where records go to beside the engine's own memory: to a log that is written, to pages that are told."""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from longspan.engine.observer.line import Line
from longspan.engine.observer.messages import (
    Frames,
    Kind,
    Look,
    Record,
    Watch,
    decode_frames,
    decode_said,
    encode,
)
from longspan.metrics.event_log import LogRecord, OpenedLog, tell_the_end
from longspan.metrics.fleet.frames import About

END_S = 15.0
"""How long the end of the engine waits for the log: longer than the observer does for its disk."""
_AT_A_TIME = 64  # records of before that are sent before others have a turn
_MANY_BYTES = 1 << 20

_PAUSE_S = 0.01
_OVER = Frames(is_over=True)

logger = logging.getLogger(__name__)


class Observation:
    """An observer, while there is something to write or somebody looks. It raises nothing, unless that is said.

    num_errors: 1 once the log has ended early. log_path: of its file; None: there is none. num_read: records so far.
    All but `close` is for the thread of the engine's loop.
    """

    def __init__(self) -> None:
        self.num_errors = 0
        self.log_path: Path | None = None
        self.num_read = 0
        self._line: Line | None = None
        self._has_log = False
        self._num_views = 0
        self._views: set[int] = set()
        self._asked: dict[int, asyncio.Future[Frames]] = {}
        self._num_asked = 0
        self._owner = os.getpid()

    @property
    def pid(self) -> int | None:
        """Return the process that observes; None: there is none."""
        return None if self._line is None else self._line.pid

    @property
    def num_views(self) -> int:
        """Return how many look on."""
        return len(self._views)

    def begin_log(self, path: Path, open_it: Callable[[], OpenedLog]) -> None:
        """Write an event log from now on. path: where it is to be. open_it: may raise anything."""
        try:
            log = open_it()
        except Exception as error:
            self._end_log(tell_the_end(path, error))
            return
        self.log_path = log.path
        try:
            self._line = Line((log.descriptor,))
        except OSError as error:
            self._end_log(tell_the_end(log.path, error))
            return
        finally:
            os.close(log.descriptor)
        self._has_log = True
        self._send(Kind.LOG, pickle.dumps(log))
        atexit.register(self.close)

    def read(self, records: Sequence[Record]) -> None:
        """Hand over some more, of which nothing is changed from now on."""
        if self._line is None:
            return
        self.num_read += len(records)
        try:
            data = encode(records)
        except Exception:
            self._read_those_before_the_broken(records)
        else:
            self._send(Kind.RECORDS, data)

    def hurry(self) -> None:
        """Have the log written soon. Does not wait for it."""
        if self._has_log:
            self._send(Kind.HURRY, b"")
        self._hear()

    def close(self) -> None:
        """Write what is left of the log; may take as long as the disk does. On any thread, but nobody may look on."""
        atexit.unregister(self.close)
        line, self._line = self._line, None
        if line is None or os.getpid() != self._owner:  # a fork of the engine's process ends
            return
        said, has_come = line.finish(END_S)
        for kind, body in said:
            self._take(kind, body)
        if self._has_log and not has_come:
            why = f"the process that writes it did not end in {END_S:g} s"
            self._end_log(tell_the_end(self.log_path or "", why))
        self._has_log = False

    # those who look

    @contextmanager
    def watching(self, watch: Watch, records: Sequence[LogRecord], catch_up: Callable[[], None],
                 clock: Callable[[], float]) -> Iterator[ObservedView]:  # fmt: skip
        """Keep a model of the fleet up to date meanwhile, for one who looks.

        records: that are remembered of before. catch_up: hands over what there is. clock: of the records, seconds.

        Raises OSError: there can be no other process.
        """
        if self._line is None:
            self._line = Line()
        line = self._line
        if not self._views:
            asyncio.get_running_loop().add_reader(line.fileno, self._hear)
        self._views.add(watch.number)
        try:
            self._send(Kind.WATCH, pickle.dumps(watch))
            yield ObservedView(self, line, watch.number, records, catch_up, clock)
        finally:
            if watch.number in self._views and self._line is line:
                self._send(Kind.LEAVE, str(watch.number).encode())
            self._views.discard(watch.number)
            self._rest()

    def next_number(self) -> int:
        """Return one for another who looks."""
        self._num_views += 1
        return self._num_views

    def end_views(self) -> None:
        """Have nobody look any more."""
        self._views.clear()
        self._rest()

    def ask(
        self, line: Line, number: int, now: float, about: About | None, state: str | None
    ) -> asyncio.Future[Frames]:
        """Ask for frames, see `Look`."""
        future: asyncio.Future[Frames] = asyncio.get_running_loop().create_future()
        if line is not self._line or number not in self._views:
            future.set_result(_OVER)
            return future
        self._num_asked += 1
        self._asked[self._num_asked] = future
        self._send(Kind.LOOK, encode(Look(number, self._num_asked, now, state, about)))
        return future

    def tell_past(self, line: Line, number: int, records: Sequence[LogRecord], *, is_last: bool) -> None:
        """Hand over some of what was before."""
        if line is self._line and number in self._views:
            past = [(record.now, record.event, record.actions, record.why) for record in records]
            self._send(Kind.PAST, encode({"number": number, "is_last": is_last, "records": past}))

    # what goes to and fro

    def _read_those_before_the_broken(self, records: Sequence[Record]) -> None:
        for record in records:
            try:
                data = encode([record])
            except Exception as error:
                self._send(Kind.LACKING, (str(error) or type(error).__name__).encode(errors="replace"))
                return
            self._send(Kind.RECORDS, data)

    def _send(self, kind: Kind, body: bytes) -> None:
        if self._line is None:
            return
        try:
            self._line.send(kind, body)
        except OSError as error:
            self._lose(error)

    def _hear(self) -> None:
        if self._line is None:
            return
        try:
            said = self._line.receive()
        except EOFError as error:
            self._lose(error)
            return
        for kind, body in said:
            self._take(kind, body)
        self._rest()

    def _take(self, kind: Kind, body: bytes) -> None:
        match kind:
            case Kind.FRAMES:
                frames = decode_frames(body)
                _answer(self._asked.pop(frames.question, None), frames)
            case Kind.LOG_ENDED:
                self._end_log(body.decode())
            case Kind.SAID:
                name, level, text = decode_said(body)
                logging.getLogger(name).log(level, "%s", text)

    def _rest(self) -> None:
        """Nobody may look any more; and nothing may be left to do."""
        line = self._line
        if line is None or self._views:
            return
        self._stop_looking(line)
        if not self._has_log:
            self._line = None
            line.kill()

    def _lose(self, error: Exception) -> None:
        """The observer has ended by itself, or is of no use."""
        line, self._line = self._line, None
        if line is None:
            return
        with suppress(OSError, EOFError):
            for kind, body in line.receive():
                self._take(kind, body)
        self._stop_looking(line)
        self._views.clear()
        line.kill()
        if self._has_log:
            self._end_log(tell_the_end(self.log_path or "", error))

    def _stop_looking(self, line: Line) -> None:
        with suppress(RuntimeError):  # there is no loop any more
            asyncio.get_running_loop().remove_reader(line.fileno)
        asked, self._asked = self._asked, {}
        for future in asked.values():
            _answer(future, _OVER)

    def _end_log(self, told: str) -> None:
        self._has_log = False
        if not self.num_errors:
            self.num_errors = 1
            logger.warning("%s", told)


def _answer(future: asyncio.Future[Frames] | None, frames: Frames) -> None:
    """None, or cancelled: nobody waits for it any more."""
    if future is not None and not future.done():
        future.set_result(frames)


class ObservedView:
    """What one who looks has of it: see `View`."""

    def __init__(
        self, observation: Observation, line: Line, number: int, records: Sequence[LogRecord],
        catch_up: Callable[[], None], clock: Callable[[], float],
    ) -> None:  # fmt: skip
        self._observation, self._line, self._number = observation, line, number
        self._records, self._catch_up, self._clock = records, catch_up, clock

    def catch_up(self) -> int:
        self._catch_up()
        return self._observation.num_read

    async def remember(self) -> None:
        records, self._records = self._records, ()
        for begin in range(0, len(records), _AT_A_TIME):
            some = records[begin : begin + _AT_A_TIME]
            self._observation.tell_past(self._line, self._number, some, is_last=begin + _AT_A_TIME >= len(records))
            await asyncio.sleep(_PAUSE_S if self._line.pending_bytes > _MANY_BYTES else 0)

    def frames(self, about: About | None, state: str | None) -> asyncio.Future[Frames]:
        self._catch_up()
        return self._observation.ask(self._line, self._number, self._clock(), about, state)
